"""The Triton programs on a GPU: errors against float64, and times against bfloat16.

    python benchmarks/gpu_kernels.py [--only orders,products] [--out FILE]

``orders``: the Hadamard transform, quantized, at the sizes that models have; its error against float64, the part of the
integers that differ from the reference's, and the first call's seconds (compiling included). ``products``: the linears
of Llama 2 7B; a ratio is bfloat16's time by ours, once for the programs alone (replays of a graph) and once with what
the host does to launch them (calls one behind the other). Writes benchmarks/results/gpu_kernels.json.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gpu_parts import measure_parts
from gpu_timing import device_seconds, eager_seconds
from torch.nn import functional

from jointquant.quantization.integer import IntFormat, encode_rows
from jointquant.quantization.ranges import DynamicRange
from jointquant.quantization.weights import round_to_nearest
from jointquant.rotations.hadamard import HadamardTransform
from jointquant.runtime.input_path import InputPath
from jointquant.runtime.kernels.int4_triton import Int4Triton, halved
from jointquant.runtime.site import SiteInput

RESULT = Path(__file__).parent / "results" / "gpu_kernels.json"
SHAPES = {"q, k, v": (12288, 4096), "o": (4096, 4096), "gate, up": (22016, 4096), "down": (4096, 11008)}
ROWS = (1, 16, 2048)
INPUTS = {
    "W4A16": (None, None),
    "W4A16 g128": (None, 128),
    "W4A8": (DynamicRange(IntFormat(8, False)), None),
    "W4A8 g128": (DynamicRange(IntFormat(8, False)), 128),
    "W4A4": (DynamicRange(IntFormat(4, False)), None),
}
"""The quantizer of x, and the columns of W that share a scale (none: the row)."""
ORDERS = (3584, 5120, 8192, 11008, 13824, 14336, 18944, 28672, 29568)
TOKENS = (1, 16, 512)
BEYOND_CACHE = 200 * 2**20
"""Bytes that no second cache holds."""
MOST_ERROR = 0.01
"""Of a product, as a part of its largest number, in bfloat16."""
MOST_HADAMARD_ERROR = 3e-6


class Product:
    """One product of random integers, with as many copies of its weight as no cache holds.

    Args:
        shape: (out, in).
        width: one of ``INPUTS``.
        rows: tokens.
    """

    def __init__(self, shape: tuple[int, int], width: str, rows: int) -> None:
        torch.manual_seed(0)
        self.quantizer, group_size = INPUTS[width]
        self.weight = torch.randn(shape, device="cuda")
        self.rounded = round_to_nearest(self.weight, IntFormat(4, True, group_size), "none", torch.float32)
        self.x = torch.randn(rows, shape[1], device="cuda", dtype=torch.bfloat16)
        self.kernel, self.path = Int4Triton(), InputPath(None, self.quantizer)
        copies = max(1, BEYOND_CACHE // (shape[0] * shape[1] // 2))
        self.prepared = [halved(self.rounded, self.quantizer) for _ in range(copies)]

    def works(self) -> list[Callable[[], object]]:
        """Our product, with each copy."""
        return [lambda each=each: self.kernel.run(SiteInput(self.x, self.path, {}), each) for each in self.prepared]

    def plain_works(self) -> list[Callable[[], object]]:
        """bfloat16's."""
        copies = max(1, BEYOND_CACHE // (2 * self.weight.numel()))
        weights = [self.weight.bfloat16() for _ in range(copies)]
        return [lambda each=each: functional.linear(self.x, each) for each in weights]

    def expected(self) -> torch.Tensor:
        """float64 [rows, out], of integers that were made on the CPU, which divides exactly."""
        read = self.x if self.quantizer is None else self.quantizer.encode(self.x.cpu()).dequantize().to("cuda")
        return read.double() @ self.rounded.dequantize(torch.float64).T

    def error(self) -> float:
        """As a part of the largest number."""
        expected = self.expected()
        actual = self.kernel.run(SiteInput(self.x, self.path, {}), self.prepared[0])
        return float((actual - expected).abs().max() / expected.abs().max())


def main() -> None:
    """Measure and write."""
    measure_parts("gpu_kernels.py", __doc__, PARTS, RESULT)


def products() -> Any:
    """Each linear at each width, for few and many tokens."""
    for name, shape in SHAPES.items():
        plain: dict[int, tuple[float, float]] = {}
        for width in INPUTS:
            for rows in ROWS:
                product = Product(shape, width, rows)
                if rows not in plain:
                    works = product.plain_works()
                    plain[rows] = device_seconds(works), eager_seconds(works)
                works = product.works()
                alone, called, error = device_seconds(works), eager_seconds(works), product.error()
                yield {
                    "product": name, "width": width, "rows": rows, "error": error, "right": error < MOST_ERROR,
                    "ratio": plain[rows][0] / alone, "ratio_called": plain[rows][1] / called,
                    "microseconds": 1e6 * alone, "microseconds_called": 1e6 * called,
                    "microseconds_bf16": 1e6 * plain[rows][0], "microseconds_bf16_called": 1e6 * plain[rows][1],
                }  # fmt: skip


def orders() -> Any:
    """R4 with quantization at each size: ours, and torch's operations."""
    from jointquant.runtime.kernels.int4_triton import token_codes
    from jointquant.runtime.kernels.triton_hadamard import factor_orders, hadamard

    for size in ORDERS:
        transform, fmt = HadamardTransform.of_size(size), IntFormat(4, False)
        path = InputPath(transform, DynamicRange(fmt))
        for rows in TOKENS:
            x = torch.randn(rows, size, device="cuda", dtype=torch.bfloat16)
            start = time.perf_counter()
            found = token_codes(SiteInput(x, path, {}))
            torch.cuda.synchronize()
            first = time.perf_counter() - start
            expected = transform.apply(x.double())
            error = float((hadamard(x, transform) - expected).abs().max() / expected.abs().max())
            codes = encode_rows(expected.float(), fmt).integers.flatten(-2)
            differ = float((found.integers != codes).float().mean())
            ours = [lambda x=x, path=path: token_codes(SiteInput(x, path, {}))]
            theirs = [lambda x=x, path=path: SiteInput(x, path, {}).signed_codes()]
            alone, other = device_seconds(ours), device_seconds(theirs)
            yield {
                "order": size, "factors": factor_orders(transform.block_size, transform.base), "rows": rows,
                "error": error, "differing_integers": differ, "right": error < MOST_HADAMARD_ERROR and differ < 1e-3,
                "first_call_seconds": first, "ratio": other / alone, "ratio_called": ratio_called(ours, theirs),
                "microseconds": 1e6 * alone, "microseconds_torch": 1e6 * other,
            }  # fmt: skip


def ratio_called(ours: list[Callable[[], object]], theirs: list[Callable[[], object]]) -> float:
    """Their time by ours, with what the host does."""
    return eager_seconds(theirs) / eager_seconds(ours)


PARTS: dict[str, Callable[[], Any]] = {"orders": orders, "products": products}

if __name__ == "__main__":
    main()
