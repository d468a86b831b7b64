"""What a model has lost: its artifact beside it on a few windows that it was not calibrated on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from typing_extensions import Unpack

from jointquant.backend.devices import resolve_device, resolve_dtype
from jointquant.backend.memory import Size, words
from jointquant.errors import require
from jointquant.evaluation.divergence import Divergence
from jointquant.evaluation.evaluate import measured
from jointquant.evaluation.runners import Loaded, needed_in_memory, room_for
from jointquant.hub import locate
from jointquant.models.layer import Place
from jointquant.models.options import ModelOptions, completed, of_folder
from jointquant.models.stream import ModelStream
from jointquant.progress import Progress, Silent
from jointquant.recipe.recipe import CalibrationSettings
from jointquant.run.fitting import window_length
from jointquant.runtime.loading import load, load_tokenizer
from jointquant.runtime.streaming import open_any_stream
from jointquant.text.sources import load_text
from jointquant.text.tokens import tokenize
from jointquant.text.windows import held_out_windows

WINDOWS, LENGTH = 4, 256
"""At most so many windows of so many tokens: less than a hundredth of what a run calibrates on."""


@dataclass(frozen=True)
class Quality:
    """How near an artifact's predictions are to its model's.

    Attributes:
        source: the text.
        tokens: of the windows that were measured.
        perplexity: of the artifact on them.
        divergence: KL divergence from the model, and how often both put the same token first.
        seconds: wall time, with loading.
    """

    source: str
    tokens: int
    perplexity: float
    divergence: Divergence
    seconds: float

    def to_dict(self) -> dict[str, object]:
        """As plain data."""
        return asdict(self)


def check_quality(
    artifact: str | Path,
    model: str | Path,
    calibration: CalibrationSettings,
    *,
    memory_budget: Size = None,
    progress: Progress | None = None,
    **options: Unpack[ModelOptions],
) -> Quality:
    """Measure an artifact beside the model that it was made of, on held-out windows of its calibration text.

    Args:
        artifact: a folder that ``quantize`` wrote.
        model: the folder or hub id that it was made of.
        calibration: what it was calibrated on.
        memory_budget: bytes that the process may use, or a size such as "16GB"; None: what is free.
        progress: where progress is shown; None: nowhere.
        **options: how the model is found and opened, as for ``quantize``.

    Raises:
        InputError: both together take more memory than they may, or no text was held out.
    """
    start, given, progress = time.perf_counter(), completed(options), progress or Silent()
    folders = [Path(artifact), locate(model, given["revision"], given["hub"], progress).folder]
    streams = [open_any_stream(folder, given["allow_pickle"], "ignore") for folder in folders]
    check_room(streams, given, memory_budget)
    tokenizer = load_tokenizer(folders[0], "ignore")  # of an artifact that was written just now
    tokens = tokenize(tokenizer, load_text(calibration.source, "calibration", progress, tokenizer))
    drawn = calibration.num_samples, window_length(streams[0].config, calibration.seqlen), calibration.seed
    windows = held_out_windows(tokens, *drawn, calibration.source, WINDOWS)[:, :LENGTH]
    local: ModelOptions = {**of_folder(given), "digests": "ignore"}
    runners = [Loaded(load(folder, kernels="reference", **local)) for folder in folders]
    perplexity, divergence = measured(runners[0], runners[1], windows, "held-out text", progress)
    assert divergence is not None
    return Quality(calibration.source, windows.numel(), perplexity, divergence, time.perf_counter() - start)


def check_room(streams: Sequence[ModelStream], given: ModelOptions, memory_budget: Size) -> None:
    """Raises InputError where several models do not fit into memory together."""
    where = resolve_device(given["device"])
    places = [Place(where, resolve_dtype(given["dtype"], where, stream.stored_dtype)) for stream in streams]
    needed = sum(needed_in_memory(stream, place) for stream, place in zip(streams, places, strict=True))
    room = room_for(where, memory_budget)
    require(
        room is None or needed <= room,
        f"model and artifact together take {words(needed)}, and there are {words(max(0, room or 0))}: expected "
        "a larger `memory_budget`, or jointquant eval, which runs layer by layer",
    )
