"""Capture: the samples that rotations are learned from, once for many trainings."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from typing_extensions import Unpack

from jointquant.backend.memory import Size, little_freed_memory_kept
from jointquant.calibration.capture import bytes_of_samples, capture_samples, check_capturable
from jointquant.calibration.samples import Samples
from jointquant.distributed.ranks import of_leader
from jointquant.events import OnEvent, reported
from jointquant.job import Request, open_jobs
from jointquant.models.options import ModelOptions
from jointquant.planning.budget import Limits
from jointquant.planning.plan import Plan
from jointquant.progress import Progress
from jointquant.recipe.recipe import Recipe, load_recipe

MOST_TOKENS = 1_000_000_000
"""The largest ``num_tokens``: more than a walk sees, so every token is kept."""


@dataclass(frozen=True)
class CaptureResult:
    """What a capture kept.

    Attributes:
        out: the folder.
        layers: of the model.
        residual_tokens: of each layer, for R1; 0: none.
        head_tokens: of each layer, for its R2; 0: none.
        size_bytes: of all samples.
        seconds: wall time.
    """

    out: str
    layers: int
    residual_tokens: int
    head_tokens: int
    size_bytes: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


@little_freed_memory_kept()
def capture(
    model: str | Path | PreTrainedModel,
    out: str | Path,
    recipe: str | Path | Recipe = "w4a4kv4",
    *,
    changes: Iterable[str] = (),
    tokens: int | Literal["all"] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    memory_budget: Size = None,
    device_budget: Size = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    on_event: OnEvent | None = None,
    announce: Callable[[Plan], None] | None = None,
    **options: Unpack[ModelOptions],
) -> CaptureResult:
    """Walk through the unquantized model and keep seeded token samples of every layer, for ``rotate``.

    An unfinished capture of the same settings is resumed.

    Args:
        model: a model folder, a hub id, or a model in memory.
        out: the folder to write; it appears only when it is complete.
        recipe: whose samples: a preset's name, a YAML file, or a recipe.
        changes: ``key=value`` settings of the recipe.
        tokens: sampled, in place of both ``num_tokens`` of the recipe; "all": whole activations.
        tokenizer, memory_budget, device_budget, overwrite, progress, on_event, announce, **options: as for
            ``quantize``.

    Raises:
        InputError: the input is at fault, the recipe learns neither R1 nor R2, or the run does not fit.
        ResumableError: the disk is full or the model's files changed; finished steps are kept.
    """
    start = time.perf_counter()
    settings = sampled(load_recipe(recipe, changes), tokens)
    request = Request(
        model,
        Path(out),
        {"samples": settings},
        tokenizer,
        options,
        Limits(memory_budget, device_budget),
        overwrite,
        reported(progress, on_event),
        announce,
        besides={"verb": "capture"},
        verb="capture",
    )
    with open_jobs(request) as opened:
        if opened.report is not None:
            return CaptureResult(**opened.report)
        samples = capture_samples(opened.jobs["samples"])
        result = of_leader(opened.ranks, lambda: _result(samples, out, time.perf_counter() - start))
        opened.complete(result.to_dict())
    return result


def sampled(recipe: Recipe, tokens: int | Literal["all"] | None) -> Recipe:
    """A recipe of which so many tokens are kept. Raises InputError where it learns neither R1 nor R2."""
    check_capturable(recipe)
    if tokens is None:
        return recipe
    number = MOST_TOKENS if tokens == "all" else tokens
    learned = [name for name in ("r1", "r2") if getattr(recipe.rotations, name).kind == "learned"]
    return load_recipe(recipe, [f"rotations.{name}.num_tokens={number}" for name in learned])


def _result(samples: Samples, out: str | Path, seconds: float) -> CaptureResult:
    first = samples.layer(0)
    counts = [0 if sample is None else len(sample) for sample in (first.residual, first.heads)]
    layers = samples.sizes.num_layers
    return CaptureResult(str(out), layers, counts[0], counts[1], bytes_of_samples(samples), seconds)
