"""A GGUF file for llama.cpp: blocks with the artifact's own integers, F16 and F32 for the rest."""

from __future__ import annotations

from pathlib import Path

import numpy
from gguf import MODEL_ARCH_NAMES, GGMLQuantizationType, GGUFWriter, LlamaFileType

from jointquant._version import __version__
from jointquant.export.artifact import Artifact
from jointquant.export.fingerprints import fingerprint_of_export
from jointquant.export.gguf_blocks import kind_of
from jointquant.export.gguf_families import FAMILIES
from jointquant.export.gguf_metadata import add_hyperparameters
from jointquant.export.gguf_tensors import plan
from jointquant.export.gguf_tokenizer import add_vocabulary, read_vocabulary
from jointquant.files.durable import room_needed
from jointquant.fingerprint.carried import GGUF_KEY, gguf_text
from jointquant.progress import Progress
from jointquant.quantization.integer import IntFormat
from jointquant.runtime.loading import load_tokenizer

FILE_TYPES = {
    GGMLQuantizationType.Q4_0: LlamaFileType.MOSTLY_Q4_0,
    GGMLQuantizationType.Q4_1: LlamaFileType.MOSTLY_Q4_1,
    GGMLQuantizationType.Q8_0: LlamaFileType.MOSTLY_Q8_0,
}
"""By the kind of most blocks: of the decoder's linears, the narrowest."""
QUANTIZATION_VERSION = 2  # of ggml's block layouts


def write_gguf(artifact: Artifact, file: Path, progress: Progress) -> int:
    """Write an artifact that has no obstacles for GGUF; returns the bytes of its tensors.

    Tensors are made and written one at a time.

    Raises:
        InputError: a tokenizer, a setting of the model, or a number that GGUF does not have.
    """
    family = FAMILIES[artifact.architecture.model_type]
    tokenizer = load_tokenizer(artifact.folder, artifact.digests.mode)
    vocabulary = read_vocabulary(tokenizer, artifact.config.vocab_size)
    writer = GGUFWriter(file, family_name(artifact))
    _add_general(writer, artifact)
    writer.add_string(GGUF_KEY, gguf_text(fingerprint_of_export(artifact, tokenizer)))
    add_hyperparameters(writer, artifact.config, family)
    add_vocabulary(writer, vocabulary, tokenizer, artifact.config)
    plans = plan(artifact)
    for planned in plans:
        dtype = numpy.dtype(planned.dtype)
        writer.add_tensor_info(planned.name, planned.shape, dtype, planned.nbytes, raw_dtype=planned.kind)
    size = sum(planned.nbytes for planned in plans)
    with room_needed(file, size):
        try:
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            with progress.stage("export", len(plans)) as stage:
                for planned in plans:
                    writer.write_tensor_data(planned.make())
                    stage.advance()
        finally:
            writer.close()
    return size


def family_name(artifact: Artifact) -> str:
    """The architecture's name in GGUF."""
    return MODEL_ARCH_NAMES[FAMILIES[artifact.architecture.model_type].arch]


def _add_general(writer: GGUFWriter, artifact: Artifact) -> None:
    facts, recipe = artifact.quantization.facts, artifact.recipe
    base = str(facts.get("base_model", "unnamed"))
    formats = [fmt for fmt in (artifact.format_of(name) for name in artifact.linears) if isinstance(fmt, IntFormat)]
    writer.add_type("model")
    writer.add_name(f"{base.rpartition('/')[2]}-jointquant")
    writer.add_description(f"quantized with jointquant {__version__}: {recipe.description or 'a recipe of its own'}")
    writer.add_quantized_by("jointquant")
    writer.add_base_model_count(1)
    writer.add_base_model_name(0, base)
    if facts.get("base_revision"):
        writer.add_base_model_version(0, str(facts["base_revision"]))
    writer.add_quantization_version(QUANTIZATION_VERSION)
    narrowest = min(formats, key=lambda fmt: fmt.num_bits, default=None)
    writer.add_file_type(LlamaFileType.MOSTLY_F16 if narrowest is None else FILE_TYPES[kind_of(narrowest)])
