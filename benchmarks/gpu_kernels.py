"""The Triton programs at the shapes of Llama 2 7B on a GPU: errors against the reference, time against bfloat16.

    python benchmarks/gpu_kernels.py

Writes benchmarks/results/gpu_kernels.json.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from jointquant.backend.devices import device_name, resolve_device, synchronize
from jointquant.errors import require
from jointquant.quantization.integer import IntFormat
from jointquant.quantization.ranges import DynamicRange
from jointquant.quantization.weights import round_to_nearest
from jointquant.rotations.hadamard import HadamardTransform
from jointquant.runtime.input_path import InputPath
from jointquant.runtime.kernels.int4_triton import Int4Triton
from jointquant.runtime.kernels.reference import Reference
from jointquant.runtime.site import SiteInput

RESULT = Path(__file__).parent / "results" / "gpu_kernels.json"
SHAPES = {"q, k, v": (12288, 4096), "o": (4096, 4096), "gate, up": (22016, 4096), "down": (4096, 11008)}
ROWS = (1, 16, 2048)
INPUTS = {"W4A16": None, "W4A8": DynamicRange(IntFormat(8, False)), "W4A4": DynamicRange(IntFormat(4, False))}
REPETITIONS = 20


def main() -> None:
    """Measure and write."""
    device = resolve_device("auto")
    require(device.type != "cpu", "no GPU here: expected one that torch knows")
    rows = [
        measured(name, shape, width, quantizer, count, device)
        for name, shape in SHAPES.items()
        for width, quantizer in INPUTS.items()
        for count in ROWS
    ]
    rows += [rotated(count, device) for count in ROWS]
    result = {
        "command": "python benchmarks/gpu_kernels.py",
        "date": date.today().isoformat(),
        "machine": device_name(device),
        "versions": {"torch": torch.__version__},
        "rows": rows,
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n")


def measured(
    name: str, shape: tuple[int, int], width: str, quantizer: DynamicRange | None, count: int, device: torch.device
) -> dict[str, Any]:
    """One product: error by the largest result, time by bfloat16's."""
    torch.manual_seed(0)
    weight = torch.randn(shape, device=device)
    x = torch.randn(count, shape[1], device=device, dtype=torch.bfloat16)
    rounded = round_to_nearest(weight, IntFormat(4, True), "none", torch.float32)
    kernel, path = Int4Triton(), InputPath(None, quantizer)
    prepared, plain = kernel.prepare(rounded, quantizer, x.dtype), weight.bfloat16()
    expected = Reference().run(SiteInput(x, path, {}), rounded).float()
    actual = kernel.run(SiteInput(x, path, {}), prepared).float()
    theirs = seconds(lambda: functional.linear(x, plain), device)
    ours = seconds(lambda: kernel.run(SiteInput(x, path, {}), prepared), device)
    row = {"product": name, "width": width, "rows": count, "ratio": theirs / ours, "microseconds": ours * 1e6}
    row["error"] = float((actual - expected).abs().max() / expected.abs().max())
    print(json.dumps(row), flush=True)
    require(row["error"] < 0.03, f"{name} {width} with {count} rows is off by {row['error']:.3f}")
    return row


def rotated(count: int, device: torch.device) -> dict[str, Any]:
    """R4 with quantization: one program against torch's operations."""
    from jointquant.runtime.kernels.triton_tokens import hadamard_integers

    transform, fmt = HadamardTransform.of_size(11008), IntFormat(4, False)
    x = torch.randn(count, 11008, device=device, dtype=torch.bfloat16)
    path = InputPath(transform, DynamicRange(fmt))
    ours = seconds(lambda: hadamard_integers(x, transform, fmt, 1.0)[0], device)
    theirs = seconds(lambda: SiteInput(x, path, {}).signed_codes().integers, device)
    row = {"product": "R4 and quantization", "width": "A4", "rows": count, "ratio": theirs / ours}
    row |= {"microseconds": ours * 1e6}
    print(json.dumps(row), flush=True)
    return row


def seconds(run: Callable[[], Tensor], device: torch.device) -> float:
    """Median of some runs, after three."""
    times = []
    for _ in range(REPETITIONS + 3):
        synchronize(device)
        start = time.perf_counter()
        run()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[3:])


if __name__ == "__main__":
    main()
