"""The story of a run: two passes over the layers of a model that is never held as a whole.

1. Calibrate: run the unquantized layers, keep samples of their activations, learn the rotations.
2. Quantize: for each layer, fuse its norms, merge the rotations, take Hessians from the quantized layers before it,
   round its weights, run it as it now is, and write it.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from jointquant._version import __version__
from jointquant.calibration import calibrate
from jointquant.errors import require
from jointquant.hub import Location
from jointquant.inputs import calibrate_inputs
from jointquant.models.scaling import check_scalable, scale_sites
from jointquant.models.stream import LayerArguments, ModelStream, Place
from jointquant.models.transforms import (
    fuse_norm,
    fuse_norms,
    merge_rotations,
    rotate_embeddings,
    rotate_reader,
)
from jointquant.models.writer import ShardWriter
from jointquant.output import check_output, output_folder
from jointquant.progress import Progress, Silent
from jointquant.propagation import advance, embed
from jointquant.recipe import Recipe, load_recipe
from jointquant.rotations.bundle import Rotations
from jointquant.rotations.hadamard import HadamardTransform
from jointquant.rounding import round_embedding, round_head, round_layer, store_rest
from jointquant.runtime.assembly import Assembly, OnlineTransforms
from jointquant.runtime.integration import artifact_config
from jointquant.runtime.loading import generation_config_of, save_tokenizer
from jointquant.settings import WeightSettings
from jointquant.subject import Subject, open_subject
from jointquant.text.sources import load_text
from jointquant.text.windows import calibration_windows, tokenize


@dataclass(frozen=True)
class QuantizeResult:
    """What a run did.

    Attributes:
        artifact: the folder.
        seconds: wall time, per stage and in total.
        peak_rss_bytes: the process's peak resident memory.
        size_bytes: bytes of all tensors of the artifact.
        bits_per_weight: bits per parameter of the decoder's linears, scales included.
        transforms: what R1 to R4 are, in words, and the basis changes between layers where each has an R1.
    """

    artifact: str
    seconds: float
    stage_seconds: dict[str, float]
    peak_rss_bytes: int
    size_bytes: int
    bits_per_weight: float
    transforms: dict[str, str]

    def to_dict(self) -> dict[str, object]:
        """As plain data."""
        return asdict(self)


def quantize(
    model: str | Path | PreTrainedModel,
    out: str | Path,
    recipe: str | Path | Recipe = "w4a4kv4",
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    revision: str | None = None,
    hub: str = "hf",
    device: str = "auto",
    dtype: str = "auto",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> QuantizeResult:
    """Quantize a model and write the artifact.

    Args:
        model: a model folder, a hub id, or a model in memory (which is read, not changed).
        out: the folder to write; it appears only when it is complete.
        recipe: a preset's name, a YAML file, or a recipe.
        tokenizer: needed with a model in memory.
        revision: branch, tag or commit of a hub id.
        hub: ``hf`` or ``modelscope``.
        device: where layers run; "auto" is the accelerator if there is one.
        dtype: what layers compute in; "auto" is float32 on the CPU and the stored dtype elsewhere.
        overwrite: replace a folder that is not empty.
        progress: where progress is shown; None: nowhere.

    Raises:
        InputError: the input is at fault; nothing was written.
    """
    start = time.perf_counter()
    recipe = load_recipe(recipe)
    progress = progress or Silent()
    check_output(Path(out), overwrite)
    subject = open_subject(model, tokenizer, revision, hub, device, dtype, progress)
    assembly = assemble(subject.stream, recipe)
    with output_folder(Path(out), overwrite) as folder:
        windows = calibration_set(subject.stream, subject.tokenizer, recipe, progress)
        prepared = time.perf_counter()
        rotations = calibrate(subject.stream, recipe, windows, subject.place, progress)
        calibrated = time.perf_counter()
        written = write_artifact(folder, subject, assembly, rotations, windows, progress)
    end = time.perf_counter()
    stages = {
        "prepare": prepared - start,
        "calibrate": calibrated - prepared,
        "quantize": end - calibrated,
    }
    return QuantizeResult(
        str(out), end - start, stages, peak_rss_bytes(), written.size_bytes, written.bits_per_weight, written.transforms
    )


@dataclass(frozen=True)
class Written:
    """What an artifact is: bytes of its tensors, bits per parameter of the linears, its transforms in words."""

    size_bytes: int
    bits_per_weight: float
    transforms: dict[str, str]


class Witness(Protocol):
    """Is shown every layer of pass 2, and changes nothing."""

    def merged(self, index: int, layer: nn.Module) -> None:
        """Rotations are merged and paths installed; no weight is rounded yet."""

    def rounded(self, index: int, layer: nn.Module, hidden_states: Tensor, arguments: LayerArguments) -> None:
        """The layer is final, and about to run on hidden_states [windows, T, hidden]."""


def write_artifact(
    folder: Path,
    subject: Subject,
    assembly: Assembly,
    rotations: Rotations,
    windows: Tensor,
    progress: Progress,
    witness: Witness | None = None,
) -> Written:
    """Pass 2, and everything else that an artifact holds, into an existing folder."""
    stream = subject.stream
    writer = ShardWriter(folder, stream.num_layers + 2)
    bits = quantize_layers(stream, assembly, rotations, windows, subject.place, writer, progress, witness)
    writer.finish()
    rotations.save(folder)
    transforms = describe_transforms(assembly.recipe, rotations, assembly.online, stream.stored_dtype)
    write_metadata(folder, stream, subject.model, subject.origin, subject.tokenizer, assembly.recipe, transforms)
    return Written(writer.total_size, bits, transforms)


def assemble(stream: ModelStream, recipe: Recipe) -> Assembly:
    """How the layers will be built. Raises InputError when the recipe does not fit the model's sizes."""
    online = OnlineTransforms.of(recipe, stream.config, stream.head_dim, stream.intermediate_size)
    assembly = Assembly(stream.architecture, recipe, online)
    first = stream.skeleton.get_submodule(stream.architecture.layer_prefix(0))
    if recipe.smoothing.alpha is not None:
        check_scalable(stream.architecture, stream.config)
    assembly.check(first, stream.num_layers, stream.head_dim)
    return assembly


def calibration_set(
    stream: ModelStream, tokenizer: PreTrainedTokenizerBase, recipe: Recipe, progress: Progress
) -> Tensor:
    """The calibration windows [num_samples, seqlen] of token ids."""
    settings = recipe.calibration
    limit = getattr(stream.config, "max_position_embeddings", None) or settings.seqlen
    require(
        settings.seqlen <= limit,
        f"seqlen {settings.seqlen} is longer than the model's {limit} positions: pass a smaller --seqlen",
    )
    text = load_text(settings.source, "calibration", progress)
    tokens = tokenize(tokenizer, text)
    vocabulary = stream.config.vocab_size
    require(int(tokens.max()) < vocabulary, f"the tokenizer has ids beyond the model's vocabulary of {vocabulary}")
    return calibration_windows(tokens, settings.num_samples, settings.seqlen, settings.seed, settings.source)


def quantize_layers(
    stream: ModelStream,
    assembly: Assembly,
    rotations: Rotations,
    windows: Tensor,
    place: Place,
    writer: ShardWriter,
    progress: Progress,
    witness: Witness | None = None,
) -> float:
    """Pass 2. Writes every shard; returns the bits per weight of the decoder's linears."""
    architecture, stored = stream.architecture, stream.stored_dtype
    frontend = stream.frontend(place)
    first, last = rotations.r1_of(0), rotations.r1_of(-1)
    if first is not None:
        rotate_embeddings(frontend, architecture, first)
    round_embedding(frontend, architecture, assembly.recipe.embeddings, stored)
    store_rest(frontend.backbone, stored)
    writer.write(stored_tensors(frontend.backbone, frontend.root, stored))
    arguments = frontend.layer_arguments(windows)
    hidden_states = embed(frontend, windows)
    del frontend

    bits = parameters = 0
    with progress.stage("quantize", stream.num_layers) as stage:
        for index in range(stream.num_layers):
            layer = stream.layer(index, place)
            fuse_norms(layer, architecture)
            parameters += sum(_numel(layer, linear) for linear in architecture.linears)
            scale_sites(layer, architecture, rotations.scales_of(index))
            merge_rotations(layer, architecture, rotations.r1_of(index), rotations.r2_of(index), assembly.online.r4)
            assembly.install_paths(layer, index)
            assembly.install_basis_change(layer, index, rotations.basis_change(index))
            calibrate_inputs(layer, index, assembly, hidden_states, arguments[index])
            if witness is not None:
                witness.merged(index, layer)
            round_layer(layer, index, assembly, hidden_states, arguments[index], stored)
            store_rest(layer, stored)
            if witness is not None:
                witness.rounded(index, layer, hidden_states, arguments[index])
            advance(layer, hidden_states, arguments[index])
            tensors = stored_tensors(layer, architecture.layer_prefix(index), stored)
            bits += 8 * sum(
                _weight_bytes(tensors, assembly.full_name(index, linear)) for linear in architecture.linears
            )
            writer.write(tensors)
            stage.advance()
    writer.write(final_tensors(stream, last, place, assembly.recipe.head, hidden_states))
    return bits / parameters


def stored_tensors(module: nn.Module, prefix: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """A module's tensors under their full names; floating-point parameters in ``dtype``, buffers as they are."""
    parameters = dict(module.named_parameters())
    return {
        f"{prefix}.{name}": tensor.to(dtype) if name in parameters else tensor
        for name, tensor in module.state_dict().items()
    }


def final_tensors(
    stream: ModelStream, r1: Tensor | None, place: Place, settings: WeightSettings, hidden_states: Tensor
) -> dict[str, Tensor]:
    """The final norm (fused into the head) and the untied, rotated head, rounded as ``settings`` say.

    Args:
        stream: the model.
        r1: of the last layer.
        place: where the head is rotated and rounded.
        settings: of the head's weights.
        hidden_states: [windows, T, hidden] behind the last layer.
    """
    norm, head = stream.final_norm(place), stream.head(place)
    norm = fuse_norm(norm, [head], stream.architecture.norm)
    if r1 is not None:
        rotate_reader(head, r1)
    architecture, stored = stream.architecture, stream.stored_dtype
    head = round_head(head, settings, norm, hidden_states, stored)
    return stored_tensors(norm, architecture.final_norm, stored) | stored_tensors(head, architecture.head, stored)


def describe_transforms(
    recipe: Recipe, rotations: Rotations, online: OnlineTransforms, dtype: torch.dtype
) -> dict[str, str]:
    """What R1 to R4 are, in words; a block-diagonal fallback and the cost of basis changes show here.

    Args:
        recipe: what was asked for.
        rotations: what was merged.
        online: what runs with the model.
        dtype: of the stored matrices.
    """
    words: dict[str, str] = {"r1": recipe.rotations.r1.kind, "r2": recipe.rotations.r2.kind}
    if rotations.r1:
        words["r1"] += f", {HadamardTransform.of_size(rotations.r1[0].shape[-1]).describe()}"
    if rotations.r2:
        words["r2"] += f", {HadamardTransform.of_size(rotations.r2[0].shape[-1]).describe()}"
    if rotations.scales:
        sites = ", ".join(rotations.scales[0])
        words["smoothing"] = f"alpha {recipe.smoothing.alpha:g}, merged, at {sites}"
    words["r3"] = "none" if online.r3 is None else f"online, {online.r3.describe()}"
    words["r4"] = "none" if online.r4 is None else f"online, {online.r4.describe()}"
    if online.basis is not None:
        words["basis_change"] = online.basis.describe(dtype)
    return words


def write_metadata(
    folder: Path,
    stream: ModelStream,
    model: str | Path | PreTrainedModel,
    origin: Location | None,
    tokenizer: PreTrainedTokenizerBase,
    recipe: Recipe,
    transforms: dict[str, str],
) -> None:
    """config.json, the generation settings, and the tokenizer."""
    facts = {
        **base_facts(stream.config.name_or_path, origin),
        "transforms": transforms,
        "jointquant_version": __version__,
    }
    config = artifact_config(stream.config, stream.architecture, recipe, stream.stored_dtype, facts)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    generation = generation_config_of(model)
    if generation is not None:
        generation.save_pretrained(folder)
    save_tokenizer(tokenizer, folder)


def base_facts(name_or_path: str, origin: Location | None) -> dict[str, str]:
    """Which model an artifact was made of: a hub id and its commit, or the name of a folder."""
    if origin is None:
        return {"base_model": Path(name_or_path).name if Path(name_or_path).exists() else name_or_path}
    return {"base_model": origin.name} | ({"base_revision": origin.revision} if origin.revision else {})


def peak_rss_bytes() -> int:
    """Peak resident memory of this process."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _numel(layer: nn.Module, linear: str) -> int:
    weight = layer.get_submodule(linear).weight
    assert isinstance(weight, Tensor)
    return weight.numel()


def _weight_bytes(tensors: dict[str, Tensor], linear: str) -> int:
    return sum(t.nbytes for name, t in tensors.items() if name.startswith(f"{linear}.weight"))
