"""``export``: an artifact in another runtime's format, whole or not at all."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from jointquant.artifact.advice import no_export
from jointquant.artifact.card import Kind, write_card
from jointquant.artifact.obstacles.anywhere import online
from jointquant.artifact.obstacles.compressed import few_bits_in_vllm
from jointquant.artifact.obstacles.facts import Obstacle
from jointquant.artifact.tiers import OBSTACLES, reach
from jointquant.errors import InputError, require, unknown
from jointquant.events import OnEvent, reported
from jointquant.export.artifact import DTYPES, Artifact
from jointquant.export.compressed import compressed_config, compressed_shards
from jointquant.export.dense import dequantized_shards, is_plain, rotated_shards
from jointquant.export.fingerprints import fingerprint_of_export, fingerprint_of_rotated, with_rounded_weights
from jointquant.export.formats import check_format, modelfile_path, users
from jointquant.export.gguf_file import write_gguf
from jointquant.export.modelfile import modelfile_of
from jointquant.export.native import CompressedExport
from jointquant.files.durable import room_needed, save_json
from jointquant.files.output import check_output, output_file, output_folder
from jointquant.fingerprint.record import Fingerprint, save_fingerprint
from jointquant.hub import locate
from jointquant.models.configuration import blamed
from jointquant.models.options import DigestMode, digests_named
from jointquant.models.stream import open_stream
from jointquant.models.support import NOT_IN_VLLM
from jointquant.models.writer import ShardWriter
from jointquant.progress import Progress
from jointquant.rotations.bundle import ROTATIONS_NAME
from jointquant.runtime.artifact_digests import files_to_vouch_for, write_digests
from jointquant.runtime.loading import load_tokenizer, save_tokenizer
from jointquant.trust.folder import CONFIG_NAME, FINGERPRINT_NAME, GENERATION_NAME
from jointquant.trust.model_name import may_be_id
from jointquant.trust.target import check_apart


@dataclass(frozen=True)
class ExportResult:
    """What an export wrote.

    Attributes:
        out: the folder, or the file.
        format: which one.
        tier: of the artifact (see ``jointquant.artifact.tiers``).
        runtimes: who can run the artifact, in words.
        runs_in: who can run the export, and how.
        size_bytes: of all tensors that were written.
        seconds: wall time.
        untied_bytes: of ``size_bytes``, those of a second matrix: the artifact holds one for embedding and head, and
            this format both; 0 where the artifact has two itself.
    """

    out: str
    format: str
    tier: int
    runtimes: list[str]
    runs_in: list[str]
    size_bytes: int
    seconds: float
    untied_bytes: int = 0

    def to_dict(self) -> dict[str, object]:
        """As plain data."""
        return asdict(self)


def export_artifact(
    artifact: str | Path,
    format: str,
    out: str | Path,
    *,
    dequantized: bool = False,
    base: str | Path | None = None,
    dtype: str = "auto",
    digests: DigestMode | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    on_event: OnEvent | None = None,
) -> ExportResult:
    """Write an artifact in another format.

    Args:
        artifact: the folder that ``quantize`` wrote (for ``native``: a compressed-tensors export of it).
        format: ``dense``, ``compressed-tensors``, ``gguf`` or ``native``.
        out: a new folder, or a new file for ``gguf``; it appears only when it is complete.
        dequantized: ``dense`` with the quantized values; otherwise with the rotated ones before rounding.
        base: the model that the artifact was made of, for ``dense`` without ``dequantized``; None: the hub id that
            the artifact names.
        dtype: of a ``dense`` checkpoint: ``float32``, ``bfloat16``, ``float16``, or ``auto`` for the artifact's.
        digests: whether those of the artifact are checked, as in ``ModelOptions``; ``native`` has none to check.
        overwrite: replace what is there.
        progress: where progress is shown; None: a bar on a terminal or in a notebook; ``Silent()``: nowhere.
        on_event: is told what happens (``jointquant.events.OnEvent``); None: nobody is.

    Raises:
        InputError: no artifact, one that is not what was written, or the format cannot hold all of it; the message says
            which setting would help.
    """
    start = time.perf_counter()
    check_format(format)
    require(dtype == "auto" or dtype in DTYPES, unknown("dtype", dtype, ["auto", *DTYPES]))
    require(
        format == "dense" or (not dequantized and base is None and dtype == "auto"),
        f"`dequantized`, `base` and `dtype` are no part of {format}, which holds the artifact's values as they are",
    )
    require(not dequantized or base is None, "`dequantized` is of the artifact alone: expected no `base`")
    source, target, progress = Path(artifact), Path(out), reported(progress, on_event)
    check_apart(target, source)
    if format == "native":
        require(digests is None, "an export carries no digests: expected no `digests` for native")
        return _native(CompressedExport(source), target, overwrite, progress, start)
    opened = Artifact.open(source, digests_named(digests))
    reached = reach(opened.facts)
    require(
        dequantized or format != "dense" or not is_plain(opened) or base is None,
        "the artifact's weights are in floating point already: expected no `base`",
    )
    whole = dequantized or (format == "dense" and is_plain(opened))
    obstacles = OBSTACLES[format](opened.facts) if whole or format != "dense" else _architectural(opened)
    if obstacles:
        raise InputError(no_export(format, reached.tier, obstacles))
    if format == "gguf":
        size = _write_gguf(opened, target, overwrite, progress)
    else:
        check_output(target, overwrite)
        kind: Kind = "compressed-tensors" if format == "compressed-tensors" else "dense" if whole else "rotated"
        folder = _base_folder(opened, base, progress) if kind == "rotated" else None
        size = _write_folder(opened, _contents(opened, kind, folder, dtype), target, overwrite, progress)
    seconds = time.perf_counter() - start
    runs_in = users(_use(opened, format) if whole or format != "dense" else "rotated", out)
    runtimes, untied = list(reached.runtimes), _untied_bytes(opened, format, dtype)
    return ExportResult(str(out), format, reached.tier, runtimes, runs_in, size, seconds, untied)


def _use(artifact: Artifact, format: str) -> str:
    """By what decides who runs an export; a key of ``USERS``."""
    facts = artifact.facts
    if format == "compressed-tensors" and facts.recipe.kv_cache.is_vllms:
        return f"{format} with a cache of 4 bits"
    if format == "compressed-tensors" and few_bits_in_vllm(facts):
        return f"{format} with 4 bits"
    if format == "compressed-tensors" and facts.r4:
        return f"{format} with R4"
    refused = artifact.architecture.model_type in NOT_IN_VLLM and format != "gguf"
    return f"{format} without vLLM" if refused else format


def _untied_bytes(artifact: Artifact, format: str, dtype: str) -> int:
    """Of the matrix that an export holds besides what the artifact does; GGUF stores it in float16."""
    stored = DTYPES["float16"] if format == "gguf" else artifact.dtype if dtype == "auto" else DTYPES[dtype]
    return artifact.derived_elements * stored.itemsize


def _architectural(artifact: Artifact) -> list[Obstacle]:
    """What keeps even the rotated, unrounded model from being a plain checkpoint."""
    return [o for o in online(artifact.facts) if not o.change or o.change.startswith("rotations.r1")]


@dataclass(frozen=True)
class _Contents:
    """What a folder of tensors is filled with.

    Attributes:
        kind: of export.
        shards: its tensors.
        config: its config.json.
        fingerprint: of a tokenizer: what the export is to predict.
        exact: with the very values that were measured.
    """

    kind: Kind
    shards: Iterable[dict[str, Tensor]]
    config: dict[str, Any]
    fingerprint: Callable[[PreTrainedTokenizerBase], Fingerprint]
    exact: bool = True


def _contents(artifact: Artifact, kind: Kind, base: Path | None, dtype: str) -> _Contents:
    """Those of a checkpoint; one of the rotated weights needs the ``base`` model."""
    own = partial(fingerprint_of_export, artifact)
    if kind == "compressed-tensors":
        return _Contents(kind, compressed_shards(artifact), compressed_config(artifact), own)
    as_dtype = artifact.dtype if dtype == "auto" else DTYPES[dtype]
    about = {"dtype": str(as_dtype).removeprefix("torch."), "jointquant": artifact.described}
    shards = (
        dequantized_shards(artifact, as_dtype)
        if base is None
        else rotated_shards(artifact, open_stream(base), as_dtype)
    )
    exact = as_dtype == DTYPES["float32"]  # what `eval` computes with
    whole = own if base is None else partial(fingerprint_of_rotated, artifact, base)
    fingerprint = whole if exact else lambda tokenizer: with_rounded_weights(whole(tokenizer))
    return _Contents(kind, shards, artifact.plain_config | about, fingerprint, exact)


def _write_gguf(artifact: Artifact, out: Path, overwrite: bool, progress: Progress) -> int:
    """A GGUF file, and Ollama's Modelfile beside it; bytes of its tensors."""
    with output_file(out, overwrite) as file, output_file(modelfile_path(out), overwrite) as beside:
        size = write_gguf(artifact, file, progress)
        words = modelfile_of(artifact, out)
        with room_needed(beside, len(words.encode())):
            beside.write_text(words, encoding="utf-8")
    return size


def _write_folder(artifact: Artifact, contents: _Contents, out: Path, overwrite: bool, progress: Progress) -> int:
    """A dense or compressed-tensors folder; bytes of its tensors."""
    with output_folder(out, overwrite) as folder:
        size = _write(folder, contents.shards, artifact.num_shards, progress).total_size
        save_json(folder / CONFIG_NAME, contents.config)
        rotations = artifact.rotations() if contents.kind == "compressed-tensors" else None
        _copy_companions(artifact.folder, folder, [] if rotations is None else [rotations.name])
        tokenizer = load_tokenizer(artifact.folder, artifact.digests.mode)
        save_tokenizer(tokenizer, folder)
        save_fingerprint(folder / FINGERPRINT_NAME, contents.fingerprint(tokenizer))
        facts = artifact.described | reach(artifact.facts).to_dict()
        write_card(folder, facts, contents.kind, carried_from=artifact.folder if contents.exact else None)
    return size


def _base_folder(artifact: Artifact, base: str | Path | None, progress: Progress) -> Path:
    """Where the model lies that an artifact was made of."""
    facts = artifact.quantization.facts
    named = str(facts.get("base_model", ""))
    if base is None and not may_be_id(named):
        raise InputError(
            f"the artifact was made of a local model called {named!r}, and holds only rounded weights: "
            "expected `base` with that model, or `dequantized=True` for the quantized values"
        )
    if base is None:
        return locate(named, facts.get("base_revision"), progress=progress).folder
    return locate(base, progress=progress).folder


def _native(source: CompressedExport, out: Path, overwrite: bool, progress: Progress, start: float) -> ExportResult:
    with output_folder(out, overwrite) as folder, blamed(f"{source.folder} is not as its configuration says"):
        writer = _write(folder, source.shards(), source.num_shards(), progress)
        _copy_companions(source.folder, folder, [ROTATIONS_NAME, FINGERPRINT_NAME])
        save_tokenizer(load_tokenizer(source.folder), folder)
        write_digests(folder, source.config(), writer.digests, files_to_vouch_for(folder))
        reached = reach(Artifact.open(folder).facts)
        write_card(folder, source.quantization.to_dict() | reached.to_dict(), "native", carried_from=source.folder)
    seconds = time.perf_counter() - start
    runs_in = users("native", out)
    return ExportResult(str(out), "native", reached.tier, list(reached.runtimes), runs_in, writer.total_size, seconds)


def _write(folder: Path, shards: Iterable[dict[str, Tensor]], count: int, progress: Progress) -> ShardWriter:
    writer = ShardWriter(folder, count)
    with progress.stage("export", count) as stage:
        for shard in shards:
            writer.write(shard)
            stage.advance()
    writer.finish()
    return writer


def _copy_companions(source: Path, folder: Path, others: Sequence[str]) -> None:
    """Generation settings and chat template as they are, and ``others`` that are there."""
    for name in (GENERATION_NAME, "chat_template.jinja", *others):
        if (source / name).is_file():
            with room_needed(folder / name, (source / name).stat().st_size):
                (folder / name).write_bytes((source / name).read_bytes())
