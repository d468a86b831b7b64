"""The whole story on the embedded model: five recipes at W4A4KV4, evaluated on text the model has never seen."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from jointquant.evaluation.evaluate import evaluate
from jointquant.pipeline import quantize
from jointquant.progress import Progress
from jointquant.recipe import load_recipe

HERE = Path(__file__).parent
MODEL = HERE / "model"
CALIBRATION_TEXT = HERE / "calibration.txt"
HELDOUT_TEXT = HERE / "heldout.txt"
RECIPES = ("fp16", "rtn", "gptq", "quarot", "dartquant")
SEQLEN = 256
NUM_SAMPLES = 64


@dataclass(frozen=True)
class Row:
    """One recipe's line of the table; seconds are those of quantizing."""

    recipe: str
    perplexity: float
    size_bytes: int
    bits_per_weight: float
    seconds: float

    def to_dict(self) -> dict[str, object]:
        """As plain data."""
        return asdict(self)


def run_demo(out: Path | None, seed: int, progress: Progress) -> list[Row]:
    """Quantize the embedded model with each recipe, reload each artifact, and measure it.

    Args:
        out: where the artifacts stay; None: they are thrown away.
        seed: seed of every random choice.
        progress: where progress is shown.
    """
    with ExitStack() as stack:
        folder = out or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        return [_row(name, folder / name, seed, progress) for name in RECIPES]


def _row(name: str, artifact: Path, seed: int, progress: Progress) -> Row:
    changes = (
        f"calibration.source={CALIBRATION_TEXT}",
        f"calibration.num_samples={NUM_SAMPLES}",
        f"calibration.seqlen={SEQLEN}",
        f"calibration.seed={seed}",
    )
    quantized = quantize(MODEL, artifact, load_recipe(name, changes), overwrite=True, progress=progress)
    measured = evaluate(artifact, (str(HELDOUT_TEXT),), seqlen=SEQLEN, progress=progress)
    (perplexity,) = measured.perplexity.values()
    return Row(name, perplexity, quantized.size_bytes, quantized.bits_per_weight, quantized.seconds)
