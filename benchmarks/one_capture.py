"""What the steps of pass 1 take one by one: one capture, and R1 learned on it by several objectives and optimisers.

    python benchmarks/one_capture.py MODEL TEXT.txt --name NAME [--windows 64] [--seqlen 256] [--repeats 3]

MODEL is captured once, with the settings of ``dartquant``. Then R1 alone is learned on the samples by three objectives,
two optimisers and batches of two sizes, and the R2s once. The share is that of the capture's seconds; medians of
``--repeats`` runs. A row of R1 also says what of the objective's value at the start is left over all sampled tokens.
Writes benchmarks/results/one_capture_NAME.json, one row a training.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import jointquant
from jointquant.calibration.samples import Samples
from jointquant.calibration.training import residual_start
from jointquant.recipe.training import quantizer_of
from jointquant.rotations.learning import unit_scale
from jointquant.rotations.names import ObjectiveName
from jointquant.rotations.objectives import OBJECTIVES
from report import Result

RESULTS = Path(__file__).parent / "results"
OBJECTIVE_NAMES: tuple[ObjectiveName, ...] = ("whip", "range", "quant_error")
OPTIMIZERS = {"qr": (), "newton_schulz": ("learning_rate=0.2", "momentum=0.85")}
BATCHES = (4096, 1024)
"""Tokens of a step: the default, and a quarter."""


def main() -> None:
    """The capture, the trainings of R1, one of the R2s."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--name", required=True, help="of the model, in the result file")
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--seqlen", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    changes = [f"calibration.source={arguments.text}", f"calibration.num_samples={arguments.windows}"]
    changes.append(f"calibration.seqlen={arguments.seqlen}")
    with tempfile.TemporaryDirectory() as name:
        samples, out = Path(name) / "samples", Path(name) / "rotations"

        def capture() -> Any:
            return jointquant.capture(arguments.model, samples, "dartquant", changes=changes)

        kept, seconds = timed(capture, samples, arguments.repeats)
        facts = {"model": arguments.name, "windows": arguments.windows, "seqlen": arguments.seqlen}
        facts |= {"capture_seconds": seconds, "layers": kept.layers, "residual_tokens": kept.residual_tokens}
        path = RESULTS / f"one_capture_{arguments.name}.json"
        words = [f"…/{Path(word).name}" if Path(word).exists() else word for word in sys.argv[1:]]
        result = Result(path, " ".join(["python benchmarks/one_capture.py", *words]), **facts)
        for each in trainings():
            learned, took = timed(
                lambda changes=each.changes: jointquant.rotate(samples, out, changes=changes), out, arguments.repeats
            )
            row = {"training": each.label, "seconds": took, "share_of_capture": took / seconds}
            left = {} if each.objective is None else {"loss_left": loss_left(samples, each.objective, out)}
            result.add(row | {"rotations": len(learned.rotations)} | left)


@dataclass(frozen=True)
class Training:
    """What is learned: its name in the result, the changes of the samples' recipe, and R1's objective; None: no R1."""

    label: str
    changes: tuple[str, ...]
    objective: ObjectiveName | None


def trainings() -> list[Training]:
    """R1 by each objective, optimiser and size of batches, then the R2s."""
    found = []
    for objective, (optimizer, others), tokens in itertools.product(OBJECTIVE_NAMES, OPTIMIZERS.items(), BATCHES):
        r1 = (f"objective={objective}", f"optimizer={optimizer}", f"batch_tokens={tokens}", *others)
        changes = (*(f"rotations.r1.{each}" for each in r1), "rotations.r2.kind=none")
        found.append(Training(f"R1, {objective}, {optimizer}, {tokens:,} tokens a step", changes, objective))
    return [*found, Training("all R2, whip, qr", ("rotations.r1.kind=none",), None)]


@torch.no_grad()
def loss_left(folder: Path, name: ObjectiveName, rotations: Path) -> float:
    """The objective with the learned R1 over all sampled tokens, as a part of what it is where training starts."""
    samples = Samples.open(folder)
    residual = [samples.layer(index).residual for index in range(samples.sizes.num_layers)]
    x = torch.cat([each for each in residual if each is not None])
    x = unit_scale(x) * x
    objective = OBJECTIVES[name](quantizer_of(samples.recipe.activations))
    start = residual_start(samples.sizes.hidden_size, samples.recipe)
    return float(objective(x @ load_file(rotations / "rotations.safetensors")["r1"].to(x)) / objective(x @ start.to(x)))


def timed(run: Callable[[], Any], out: Path, repeats: int) -> tuple[Any, float]:
    """What the last of several runs gave, and the median of their seconds; only what the last one wrote stays."""
    seconds = []
    for _ in range(repeats):
        shutil.rmtree(out, ignore_errors=True)
        start = time.perf_counter()
        given = run()
        seconds.append(time.perf_counter() - start)
    return given, statistics.median(seconds)


if __name__ == "__main__":
    main()
