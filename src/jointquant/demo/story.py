"""The whole story on the embedded model: five recipes at W4A4KV4, evaluated on text the model has never seen."""

from __future__ import annotations

import statistics
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from jointquant.artifact.result import QuantizeResult
from jointquant.evaluation.evaluate import evaluate
from jointquant.files.output import check_output
from jointquant.pipeline import quantize
from jointquant.progress import Progress
from jointquant.recipe.recipe import load_recipe

HERE = Path(__file__).parent
MODEL = HERE / "model"
CALIBRATION_TEXT = HERE / "calibration.txt"
HELDOUT_TEXT = HERE / "heldout.txt"
SEQLEN = 256
NUM_SAMPLES = 64

# Recipe → how many seeds its figure is the mean of; nothing in the first two depends on the seed.
RECIPES = {"fp16": 1, "rtn": 1, "gptq": 3, "quarot": 3, "dartquant": 3}


@dataclass(frozen=True)
class Row:
    """One recipe's line of the table.

    Attributes:
        recipe: the preset.
        perplexity: mean over the seeds, of the reloaded artifacts.
        perplexity_min: the best seed's.
        perplexity_max: the worst seed's.
        seeds: how many seeds.
        size_bytes: bytes of the artifact's tensors.
        bits_per_weight: of the decoder's linears, scales included.
        seconds: median time of quantizing.
    """

    recipe: str
    perplexity: float
    perplexity_min: float
    perplexity_max: float
    seeds: int
    size_bytes: int
    bits_per_weight: float
    seconds: float

    def to_dict(self) -> dict[str, object]:
        """As plain data."""
        return asdict(self)


def run_demo(out: Path | None, seed: int, progress: Progress) -> list[Row]:
    """Quantize the embedded model with each recipe, reload each artifact, and measure it.

    Args:
        out: where the artifacts stay, in folders RECIPE-SEED; None: they are thrown away.
        seed: the first of the seeds.
        progress: where progress is shown.

    Raises:
        InputError: ``out`` is no place for output, or not empty.
    """
    if out is not None:
        check_output(out, overwrite=False)
    with ExitStack() as stack:
        folder = out or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        return [_row(name, range(seed, seed + count), folder, progress) for name, count in RECIPES.items()]


def _row(name: str, seeds: range, folder: Path, progress: Progress) -> Row:
    runs = [_measure(name, seed, folder / f"{name}-{seed}", progress) for seed in seeds]
    perplexities = [perplexity for _, perplexity in runs]
    first, _ = runs[0]
    return Row(
        name,
        statistics.mean(perplexities),
        min(perplexities),
        max(perplexities),
        len(runs),
        first.size_bytes,
        first.bits_per_weight,
        statistics.median(result.seconds for result, _ in runs),
    )


def _measure(name: str, seed: int, artifact: Path, progress: Progress) -> tuple[QuantizeResult, float]:
    changes = (
        f"calibration.source={CALIBRATION_TEXT}",
        f"calibration.num_samples={NUM_SAMPLES}",
        f"calibration.seqlen={SEQLEN}",
        f"calibration.seed={seed}",
    )
    quantized = quantize(MODEL, artifact, load_recipe(name, changes), overwrite=True, progress=progress)
    measured = evaluate(artifact, (str(HELDOUT_TEXT),), seqlen=SEQLEN, progress=progress)
    (perplexity,) = measured.perplexity.values()
    return quantized, perplexity
