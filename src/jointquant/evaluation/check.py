"""What a model has lost: its artifact beside it on a few windows that it was not calibrated on."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path

from typing_extensions import Unpack

from jointquant.backend.memory import Size
from jointquant.evaluation.divergence import Divergence
from jointquant.evaluation.evaluate import measured
from jointquant.evaluation.pair import Pair
from jointquant.evaluation.runners import Loaded
from jointquant.models.options import ModelOptions, completed
from jointquant.progress import Progress, Silent
from jointquant.recipe.recipe import CalibrationSettings
from jointquant.run.fitting import window_length
from jointquant.runtime.loading import load_tokenizer
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
    start, progress = time.perf_counter(), progress or Silent()
    given: ModelOptions = {**completed(options), "digests": "ignore"}  # it was written just now
    pair = Pair.open(artifact, model, given, memory_budget, progress)
    tokenizer = load_tokenizer(pair.artifact, "ignore")
    tokens = tokenize(tokenizer, load_text(calibration.source, "calibration", progress, tokenizer))
    drawn = calibration.num_samples, window_length(pair.stream.config, calibration.seqlen), calibration.seed
    windows = held_out_windows(tokens, *drawn, calibration.source, WINDOWS)[:, :LENGTH]
    quantized, exact = pair.load()
    perplexity, divergence = measured(Loaded(quantized), Loaded(exact), windows, "held-out text", progress)
    assert divergence is not None
    return Quality(calibration.source, windows.numel(), perplexity, divergence, time.perf_counter() - start)
