"""Attention of one new token over the packed cache on a GPU: errors at all sizes of heads, then times.

    python benchmarks/gpu_attention.py [--only errors,speed] [--out FILE]

``errors``: sizes of heads, queries for each KV head, numbers of tokens and formats, against float64 over the vectors
that the records stand for. ``speed``: the shapes of Llama 2 7B and Llama 3 8B, in bfloat16, at contexts of 1,000 and
8,000 tokens; beside it the reference (records are expanded by torch's operations, which then attends) and torch's
attention over a cache in bfloat16. Times are those of the programs alone (replays of a graph, on records that are in no
cache), and with what the host does to launch them. Writes benchmarks/results/gpu_attention.json.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from gpu_parts import measure_parts
from gpu_timing import device_seconds, eager_seconds
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from jointquant.quantization.integer import IntFormat
from jointquant.quantization.ranges import DynamicRange
from jointquant.runtime.cached_states import Record
from jointquant.runtime.kernels.triton_attention import attend

RESULT = Path(__file__).parent / "results" / "gpu_attention.json"
DEVICE = torch.device("cuda")
FOUR, EIGHT = IntFormat(4, False), IntFormat(8, False)
FORMATS = {
    "4 bits": (FOUR, FOUR),
    "4 bits symmetric": (IntFormat(4, True), IntFormat(4, True)),
    "8 bits": (EIGHT, EIGHT),
}
HEAD_SIZES, GROUPS, LENGTHS = (64, 80, 96, 128, 256), (1, 4, 17), (1, 129, 3001)
MOST_ERROR = {torch.bfloat16: 8e-3, torch.float16: 1e-3, torch.float32: 2e-6}
"""By the largest value: a result's last place, or what sums in float32 leave."""
SHAPES = {"Llama-2-7B": (32, 32), "Llama-3-8B": (32, 8)}
"""Heads and KV heads, all of size 128."""
CONTEXTS = (1000, 8000)
BEYOND_CACHE = 200 * 2**20
"""Bytes that no second cache holds."""


class Case:
    """One new token and a cache of random keys and values.

    Args:
        heads: heads and KV heads.
        head_dim: their size.
        tokens: in the cache.
        formats: of keys and of values.
        dtype: of queries, and of what was quantized.
    """

    def __init__(
        self,
        heads: tuple[int, int],
        head_dim: int,
        tokens: int,
        formats: tuple[IntFormat, IntFormat],
        dtype: torch.dtype,
    ) -> None:
        torch.manual_seed(0)
        self.formats, self.scaling = formats, head_dim**-0.5
        self.query = torch.randn(1, heads[0], 1, head_dim, device=DEVICE).to(dtype)
        self.plain = [torch.randn(1, heads[1], tokens, head_dim, device=DEVICE).to(dtype) for _ in range(2)]
        self.records = [Record(DynamicRange(fmt), head_dim, dtype, DEVICE) for fmt in formats]
        self.kept = [record.encode(x) for record, x in zip(self.records, self.plain, strict=True)]

    def ours(self, kept: list[Tensor]) -> Tensor:
        """By our programs."""
        return attend(self.query, kept[0], kept[1], self.formats, self.scaling)

    def reference(self, kept: list[Tensor]) -> Tensor:
        """By torch's operations."""
        keys, values = (record.decode(x) for record, x in zip(self.records, kept, strict=True))
        return self.attention(self.query, keys, values)

    def attention(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """torch's own."""
        return scaled_dot_product_attention(query, keys, values, scale=self.scaling, enable_gqa=True)

    def error(self) -> float:
        """As a part of the largest value."""
        work = [Record(record.range, record.head_dim, torch.float32, DEVICE) for record in self.records]
        keys, values = (record.decode(x).double() for record, x in zip(work, self.kept, strict=True))
        off = self.ours(self.kept) - self.attention(self.query.double(), keys, values)
        return float(off.abs().max() / values.abs().max())


def main() -> None:
    """Measure and write."""
    measure_parts("gpu_attention.py", __doc__, PARTS, RESULT)


def errors() -> Iterator[dict[str, Any]]:
    """All sizes of heads, groups and lengths in bfloat16 with 4 bits; then the other formats and dtypes."""
    for head_dim in HEAD_SIZES:
        for group in GROUPS:
            for tokens in LENGTHS:
                yield checked(head_dim, group, tokens, "4 bits", torch.bfloat16)
        for name in FORMATS:
            for dtype in MOST_ERROR:
                yield checked(head_dim, GROUPS[1], LENGTHS[-1], name, dtype)


def checked(head_dim: int, group: int, tokens: int, name: str, dtype: torch.dtype) -> dict[str, Any]:
    """The error of one case."""
    error = Case((2 * group, 2), head_dim, tokens, FORMATS[name], dtype).error()
    return {
        "head_dim": head_dim, "group": group, "tokens": tokens, "format": name, "dtype": str(dtype).split(".")[-1],
        "error": error, "right": error <= MOST_ERROR[dtype],
    }  # fmt: skip


def speed() -> Iterator[dict[str, Any]]:
    """Each shape and context."""
    for shape, heads in SHAPES.items():
        for context in CONTEXTS:
            case = Case(heads, 128, context, FORMATS["4 bits"], torch.bfloat16)
            yield {"shape": shape, "context": context, **timed(case)}


def timed(case: Case) -> dict[str, Any]:
    """Microseconds, and ratios: another's time by ours."""
    packed, plain = copies(case.kept), copies(case.plain)
    works: dict[str, list[Callable[[], object]]] = {
        "": [lambda each=each: case.ours(each) for each in packed],
        "_reference": [lambda each=each: case.reference(each) for each in packed[:2]],
        "_bf16": [lambda each=each: case.attention(case.query, *each) for each in plain],
    }
    error, size = case.error(), sum(x.nbytes for x in case.kept)
    row: dict[str, Any] = {"error": error, "right": error <= MOST_ERROR[torch.bfloat16], "bytes": size}
    for name, each in works.items():
        row[f"microseconds{name}"] = 1e6 * device_seconds(each)
        row[f"microseconds_called{name}"] = 1e6 * eager_seconds(each)
    row["gigabytes_per_second"] = size / row["microseconds"] / 1e3
    for name in ("reference", "bf16"):
        row[f"ratio_{name}"] = row[f"microseconds_{name}"] / row["microseconds"]
        row[f"ratio_called_{name}"] = row[f"microseconds_called_{name}"] / row["microseconds_called"]
    return row


def copies(kept: list[Tensor]) -> list[list[Tensor]]:
    """As many as no cache holds together."""
    count = max(2, BEYOND_CACHE // sum(x.nbytes for x in kept))
    return [[x.clone() for x in kept] for _ in range(count)]


PARTS: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {"errors": errors, "speed": speed}

if __name__ == "__main__":
    main()
