"""A GGUF file for llama.cpp: Q4_0 and Q8_0 blocks with the artifact's own integers, F16 and F32 for the rest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
from gguf import MODEL_ARCH_NAMES, GGMLQuantizationType, GGUFWriter, LlamaFileType, get_tensor_name_map
from numpy.typing import NDArray
from torch import Tensor

from jointquant._version import __version__
from jointquant.errors import require
from jointquant.export.artifact import Artifact
from jointquant.export.fingerprints import fingerprint_of_export
from jointquant.export.gguf_blocks import GROUP, blocks_of, half_or_full
from jointquant.export.gguf_metadata import FAMILIES, add_hyperparameters, interleave, rope_factors
from jointquant.export.gguf_tokenizer import add_vocabulary, read_vocabulary
from jointquant.files.durable import room_needed
from jointquant.fingerprint.carried import GGUF_KEY, gguf_text
from jointquant.progress import Progress
from jointquant.quantization.weights import QuantizedWeight
from jointquant.runtime.loading import load_tokenizer

BLOCK_TYPES = {4: GGMLQuantizationType.Q4_0, 8: GGMLQuantizationType.Q8_0}
FILE_TYPES = {4: LlamaFileType.MOSTLY_Q4_0, 8: LlamaFileType.MOSTLY_Q8_0, 16: LlamaFileType.MOSTLY_F16}
QUANTIZATION_VERSION = 2  # of ggml's block layouts


@dataclass(frozen=True)
class Planned:
    """A tensor of the file before it is made: its name and size there, and how to make it."""

    name: str
    shape: tuple[int, ...]
    dtype: type[numpy.generic]
    kind: GGMLQuantizationType | None
    make: Callable[[], NDArray[Any]]

    @property
    def nbytes(self) -> int:
        """Its size in the file."""
        return int(numpy.prod(self.shape)) * numpy.dtype(self.dtype).itemsize


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


def plan(artifact: Artifact) -> list[Planned]:
    """All tensors of the file, in the artifact's order. Raises InputError for one that GGUF has no name for."""
    family = FAMILIES[artifact.architecture.model_type]
    names = get_tensor_name_map(family.arch, artifact.num_layers)
    plans = []
    for modules in artifact.shards():
        for module in modules:
            fmt = artifact.format_of(module)
            for name in artifact.tensors_of(module):
                if name not in ("weight", "bias", "weight_packed"):
                    continue
                stored = names.get_name(module)
                require(stored is not None, f"no GGUF export of {module}: llama.cpp has no such tensor")
                suffix = "bias" if name == "bias" else "weight"
                packed = name == "weight_packed"
                bits = fmt.num_bits if packed and fmt is not None else 16
                plans.append(_planned(artifact, module, f"{stored}.{suffix}", suffix, bits))
    factors = rope_factors(artifact.config)
    if factors is not None:
        shape = tuple(factors.shape)
        plans.append(Planned("rope_freqs.weight", shape, numpy.float32, None, lambda: factors.numpy()))
    return plans


def _planned(artifact: Artifact, module: str, stored: str, suffix: str, bits: int) -> Planned:
    """A quantized weight (``bits`` below 16), or another tensor as it is."""
    if bits < 16:
        rows, columns = artifact.shape(module)
        size, kind = columns // GROUP * (2 + GROUP * bits // 8), BLOCK_TYPES[bits]
        return Planned(
            stored, (rows, size), numpy.uint8, kind, lambda: blocks_of(_permuted_weight(artifact, module), module)
        )
    full_name = f"{module}.{suffix}"
    shape = artifact.source.shapes()[full_name]
    dtype = numpy.float32 if len(shape) == 1 else numpy.float16
    return Planned(
        stored, shape, dtype, None, lambda: half_or_full(_permuted(artifact, module, artifact.load(full_name)), module)
    )


def _permuted_weight(artifact: Artifact, module: str) -> QuantizedWeight:
    weight = artifact.quantized_weight(module)
    codes, scale, zero_point = (
        _permuted(artifact, module, part) for part in (weight.codes, weight.scale, weight.zero_point)
    )
    return QuantizedWeight(codes, scale, zero_point, weight.fmt)


def _permuted(artifact: Artifact, module: str, rows: Tensor) -> Tensor:
    """The rows of q and k in the order of the family's rotary embedding in llama.cpp; others as they are."""
    if not FAMILIES[artifact.architecture.model_type].interleaved:
        return rows
    config = artifact.config
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(module.rpartition(".")[2])
    return rows if heads is None else interleave(rows, heads)


def _add_general(writer: GGUFWriter, artifact: Artifact) -> None:
    facts, recipe = artifact.quantization.facts, artifact.recipe
    base = str(facts.get("base_model", "unnamed"))
    widths = {settings.num_bits for settings in artifact.facts.weights()}
    writer.add_type("model")
    writer.add_name(f"{base.rpartition('/')[2]}-jointquant")
    writer.add_description(f"quantized with jointquant {__version__}: {recipe.description or 'a recipe of its own'}")
    writer.add_quantized_by("jointquant")
    writer.add_base_model_count(1)
    writer.add_base_model_name(0, base)
    if facts.get("base_revision"):
        writer.add_base_model_version(0, str(facts["base_revision"]))
    writer.add_quantization_version(QUANTIZATION_VERSION)
    writer.add_file_type(FILE_TYPES[min(widths)])
