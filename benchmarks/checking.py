"""What the digests of an artifact cost: to write them in ``quantize``, and to check them in ``load``.

    python benchmarks/checking.py

With and without, in pairs that take turns in one process: first one, then the other goes first. Without digests,
``quantize`` is given functions that return zeros, and ``load`` is told to ignore them. The model has random weights.
Writes benchmarks/results/checking.json.
"""

from __future__ import annotations

import argparse
import gc
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

from large_checkpoint import generate

import jointquant
import jointquant.demo
from report import Result

RESULT = Path(__file__).parent / "results" / "checking.json"
SHAPE = {"hidden_size": 768, "intermediate_size": 2048, "num_attention_heads": 12, "num_key_value_heads": 4}
CALIBRATION = Path(jointquant.demo.__file__).parent / "calibration.txt"
CHANGES = [f"calibration.source={CALIBRATION}", "calibration.num_samples=8", "calibration.seqlen=128"]

TAKEN = ("models.writer.digest_of_tensors", "runtime.artifact_digests.digest_of_file")
"""Where ``quantize`` takes the digests that an artifact carries."""


def main() -> None:
    """Both measurements, a row each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--recipe", default="quarot")
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        generate(folder / "model", arguments.layers, **SHAPE)
        quantize = partial(quantized, folder, arguments.recipe)
        quantize(nullcontext)  # unmeasured: what is read and compiled once
        parameters = sum(path.stat().st_size for path in (folder / "model").glob("*.safetensors")) // 2
        command = " ".join(["python benchmarks/checking.py", *sys.argv[1:]])
        result = Result(arguments.out, command, layers=arguments.layers, parameters=parameters, recipe=arguments.recipe)
        shutil.copytree(folder / "out", folder / "artifact")
        bytes_read = sum(path.stat().st_size for path in (folder / "artifact").glob("model*.safetensors"))
        loads = partial(loaded, folder / "artifact", "check"), partial(loaded, folder / "artifact", "ignore")
        loaded(folder / "artifact", "check")
        result.add({"what": "load", "bytes": bytes_read, **compared(*loads, arguments.pairs)})
        runs = partial(quantize, nullcontext), partial(quantize, without_digests)
        result.add({"what": "quantize", **compared(*runs, arguments.pairs)})


def loaded(artifact: Path, digests: Any) -> None:
    """Load and let go."""
    jointquant.load(artifact, digests=digests)


def quantized(folder: Path, recipe: str, how: Callable[[], Any]) -> None:
    """Quantize the model under a context."""
    with how():
        jointquant.quantize(
            folder / "model", folder / "out", jointquant.load_recipe(recipe, CHANGES), dtype="float32", overwrite=True
        )


@contextmanager
def without_digests() -> Iterator[None]:
    """While open, digests cost nothing and say nothing."""
    with patch(f"jointquant.{TAKEN[0]}", return_value="0" * 32), patch(f"jointquant.{TAKEN[1]}", return_value="0" * 32):
        yield


def compared(with_them: Callable[[], None], without: Callable[[], None], pairs: int) -> dict[str, Any]:
    """Seconds of both, the median of each, those of all threads' work, and by how many per cent the pairs differ."""
    seconds: dict[str, list[float]] = {"with": [], "without": []}
    of_cpu: dict[str, list[float]] = {"with": [], "without": []}
    for number in range(pairs):
        order = [("with", with_them), ("without", without)]
        for name, run in order if number % 2 == 0 else reversed(order):
            gc.collect()
            start, cpu = time.perf_counter(), time.process_time()
            run()
            seconds[name].append(time.perf_counter() - start)
            of_cpu[name].append(time.process_time() - cpu)
    ratios = [a / b for a, b in zip(seconds["with"], seconds["without"], strict=True)]
    return {
        "median": {name: round(median(values), 4) for name, values in seconds.items()},
        "slower_percent": round(100 * (median(ratios) - 1), 2),
        "of_medians_percent": round(100 * (median(seconds["with"]) / median(seconds["without"]) - 1), 2),
        "cpu_median": {name: round(median(values), 4) for name, values in of_cpu.items()},
        "seconds": {name: [round(value, 4) for value in values] for name, values in seconds.items()},
    }


if __name__ == "__main__":
    main()
