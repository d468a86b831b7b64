"""The strategies of R1 on the embedded model at equal steps: Σ over layers of the Whip loss, and perplexity.

    python benchmarks/strategies.py [--seeds 3]

Σ loss is measured on one sample per layer of the calibration text that is the same for all strategies of a seed.
Perplexity is that of the reloaded W4A4KV4 artifact on the held-out text. Writes benchmarks/results/strategies.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from datetime import date
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

import jointquant
from jointquant.calibration.calibrate import walk
from jointquant.calibration.learners import ResidualLearner, residual_sampler
from jointquant.calibration.training import ModelSizes, ResidualTraining
from jointquant.calibration.windows import calibration_set
from jointquant.demo.story import CALIBRATION_TEXT, HELDOUT_TEXT, MODEL, NUM_SAMPLES, SEQLEN
from jointquant.progress import Silent
from jointquant.recipe.recipe import Recipe
from jointquant.rotations.bundle import ROTATIONS_NAME
from jointquant.rotations.objectives import whip
from jointquant.run.opening import open_subject
from jointquant.run.workspace import Workspace

RESULT = Path(__file__).parent / "results" / "strategies.json"
STRATEGIES = {
    "pooled": ("strategy=pooled",),
    "greedy": ("strategy=greedy",),
    "joint, uniform": ("strategy=joint", "weights=uniform"),
    "joint, normalised": ("strategy=joint", "weights=normalised"),
}


def main() -> None:
    """Measure every strategy over the seeds and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    samples = [layer_samples(recipe_of((), seed)) for seed in range(arguments.seeds)]
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for label, changes in STRATEGIES.items():
            runs = [measure(recipe_of(changes, s), samples[s], Path(name) / "a") for s in range(arguments.seeds)]
            rows.append({"strategy": label, "seeds": len(runs), **spread("loss", [loss for loss, _ in runs])})
            rows[-1] |= spread("perplexity", [perplexity for _, perplexity in runs])
            print(rows[-1], flush=True)
    result = {
        "command": "python benchmarks/strategies.py",
        "date": date.today().isoformat(),
        "machine": f"{torch.get_num_threads()} threads",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "rows": rows,
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n")


def recipe_of(changes: tuple[str, ...], seed: int) -> Recipe:
    """The dartquant preset with another strategy, on the demo's calibration text."""
    calibration = {"source": CALIBRATION_TEXT, "num_samples": NUM_SAMPLES, "seqlen": SEQLEN, "seed": seed}
    given = [f"calibration.{key}={value}" for key, value in calibration.items()]
    return jointquant.load_recipe("dartquant", [*given, *(f"rotations.r1.{change}" for change in changes)])


def layer_samples(recipe: Recipe) -> list[Tensor]:
    """Per layer, tokens of its residual sites [tokens, hidden]."""
    subject = open_subject(MODEL, None, Silent(), {"device": "cpu", "dtype": "float32"})
    windows = calibration_set(subject, recipe.calibration, Silent())
    training = ResidualTraining(ModelSizes.of(subject.stream), recipe)
    learner = ResidualLearner(residual_sampler(subject.stream, recipe, windows), training, subject.place.device)
    walk(subject.stream, True, windows, Workspace(subject.place), [learner], Silent())
    return list(training.samples)


def measure(recipe: Recipe, samples: list[Tensor], artifact: Path) -> tuple[float, float]:
    """Σ loss per channel, and perplexity."""
    jointquant.quantize(MODEL, artifact, recipe, overwrite=True)
    r1 = load_file(artifact / ROTATIONS_NAME)["r1"]
    loss = sum(whip(layer.double() @ r1).item() / len(r1) for layer in samples)
    (perplexity,) = jointquant.evaluate(artifact, (str(HELDOUT_TEXT),), seqlen=SEQLEN).perplexity.values()
    return loss, perplexity


def spread(name: str, values: list[float]) -> dict[str, float]:
    """Mean, least and largest."""
    return {name: statistics.mean(values), f"{name}_min": min(values), f"{name}_max": max(values)}


if __name__ == "__main__":
    main()
