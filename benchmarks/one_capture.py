"""What the steps of pass 1 take one by one: one capture, and R1 learned on it by several objectives and optimisers.

    python benchmarks/one_capture.py MODEL TEXT.txt --name NAME [--windows 64] [--seqlen 256] [--repeats 3]

MODEL is captured once, with the settings of ``dartquant``. Then R1 alone is learned on the samples six times, and the
R2s once. The share is that of the capture's seconds; medians of ``--repeats`` runs. Writes
benchmarks/results/one_capture_NAME.json, one row a training.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jointquant
from report import Result

RESULTS = Path(__file__).parent / "results"
OBJECTIVES = ("whip", "range", "quant_error")
OPTIMIZERS = {"qr": (), "newton_schulz": ("learning_rate=0.2", "momentum=0.85")}


def main() -> None:
    """The capture, six trainings of R1, one of the R2s."""
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
        result = Result(path, " ".join(["python benchmarks/one_capture.py", *sys.argv[1:]]), **facts)
        for label, settings in trainings().items():
            learned, took = timed(lambda s=settings: jointquant.rotate(samples, out, changes=s), out, arguments.repeats)
            row = {"training": label, "seconds": took, "share_of_capture": took / seconds}
            result.add(row | {"rotations": len(learned.rotations)})


def trainings() -> dict[str, list[str]]:
    """By label, the changes of the samples' recipe."""
    found = {}
    for objective in OBJECTIVES:
        for optimizer, others in OPTIMIZERS.items():
            r1 = (f"objective={objective}", f"optimizer={optimizer}", *others)
            found[f"R1, {objective}, {optimizer}"] = [
                *(f"rotations.r1.{each}" for each in r1),
                "rotations.r2.kind=none",
            ]
    return found | {"all R2, whip, qr": ["rotations.r1.kind=none"]}


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
