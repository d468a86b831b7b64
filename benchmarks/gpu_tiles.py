"""Tiles of the Triton programs, measured on a GPU: which one is fastest at the shapes of Llama 2 7B.

    python benchmarks/gpu_tiles.py [--only one_row,few_rows,integers,hadamard]

What is chosen from it stands in ``runtime/kernels/triton_*.py``. Times are those of the programs alone, each with
weights from memory. Writes benchmarks/results/gpu_tiles.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from gpu_kernels import SHAPES, Product
from gpu_timing import device_seconds

from jointquant.backend.launches import of_launch
from jointquant.rotations.hadamard import HadamardTransform
from jointquant.runtime.kernels import triton_few_rows, triton_hadamard, triton_many_rows, triton_one_row
from report import Result

RESULT = Path(__file__).parent / "results" / "gpu_tiles.json"
SOME = ("q, k, v", "o", "down")
ONE_ROW = ((8, 256, 4), (8, 512, 4), (4, 512, 4), (16, 128, 4), (4, 256, 4), (4, 256, 2), (8, 128, 2), (2, 512, 4))
FEW_ROWS = {
    16: (
        (16, 32, 128, 4, 4), (16, 16, 128, 4, 4), (16, 32, 256, 4, 3), (16, 32, 64, 4, 5), (16, 64, 64, 4, 4),
        (16, 16, 256, 4, 4), (16, 32, 128, 2, 4), (16, 16, 128, 2, 5), (16, 64, 128, 4, 4), (16, 64, 128, 8, 3),
    ),
    64: (
        (64, 64, 64, 4, 4), (64, 32, 64, 4, 4), (64, 32, 128, 4, 3), (64, 64, 128, 8, 3), (32, 32, 128, 4, 4),
        (32, 64, 64, 4, 4), (64, 128, 64, 8, 3),
    ),
}  # fmt: skip
INTEGERS = {
    128: ((64, 128, 128, 4, 3), (64, 64, 128, 4, 4), (128, 128, 128, 8, 3), (64, 256, 64, 4, 4), (128, 64, 128, 4, 3)),
    2048: (
        (128, 256, 64, 8, 4), (128, 128, 128, 8, 3), (128, 128, 128, 4, 3), (128, 128, 64, 4, 4),
        (256, 128, 64, 8, 4), (128, 256, 128, 8, 2),
    ),
}  # fmt: skip
HADAMARD = ((64, 64, 32, 4, 2), (64, 64, 64, 4, 2), (32, 64, 32, 4, 3), (128, 64, 32, 8, 2), (64, 128, 32, 8, 2))
Row = dict[str, Any]


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help=f"some of {', '.join(PARTS)}")
    asked = parser.parse_args().only.split(",")
    result = Result(RESULT, f"python benchmarks/gpu_tiles.py --only {','.join(asked)}", "cuda")
    for name in asked:
        for row in PARTS[name]():
            result.add({"program": name, **row})


def timed(works: list[Callable[[], object]]) -> Row:
    """The microseconds of a program, or why it cannot be launched."""
    try:
        return {"microseconds": 1e6 * device_seconds(works)}
    except Exception as error:
        failed = of_launch(error)
        if failed is None:
            raise
        return {"failed": str(failed)}


def one_row() -> Iterator[Row]:
    """One token."""
    for name in SOME:
        for width in ("W4A16", "W4A8"):
            product = Product(SHAPES[name], width, 1)
            for tile in ONE_ROW:
                triton_one_row.BLOCK_OUT, triton_one_row.BLOCK_WORDS, triton_one_row.WARPS = tile
                yield {"product": name, "width": width, "tile": tile, **timed(product.works())}


def few_rows() -> Iterator[Row]:
    """A few tokens."""
    for rows, tiles in FEW_ROWS.items():
        for name in SOME[:2]:
            for width in ("W4A16", "W4A8"):
                product = Product(SHAPES[name], width, rows)
                for tile in tiles:
                    triton_few_rows.TILES = {2**31: triton_few_rows.Tile(*tile)}
                    yield {"product": name, "width": width, "rows": rows, "tile": tile, **timed(product.works())}


def integers() -> Iterator[Row]:
    """Many tokens as integers."""
    for rows, tiles in INTEGERS.items():
        for name in SOME[:2]:
            product = Product(SHAPES[name], "W4A8", rows)
            for tile in tiles:
                triton_many_rows.TILES = {2**31: triton_many_rows.Tile(*tile)}
                yield {"product": name, "rows": rows, "tile": tile, **timed(product.works())}


def hadamard() -> Iterator[Row]:
    """The transform of many tokens."""
    for size in (11008, 28672):
        transform = HadamardTransform.of_size(size)
        x = torch.randn(2048, size, device="cuda", dtype=torch.bfloat16)
        for elements in (2**22, 2**23, 2**27):
            works = transforming(x, transform, elements)
            yield {"order": size, "elements": elements, "tile": "as set", **total(works)}
        for tile in HADAMARD:
            few, columns, triton_hadamard.DEPTH, triton_hadamard.WARPS, triton_hadamard.STAGES = tile
            triton_hadamard.TILE = (few, columns)
            works = transforming(x, transform, 2**24)
            yield {"order": size, "elements": 2**24, "tile": tile, **total(works)}


def transforming(x: torch.Tensor, transform: HadamardTransform, elements: int) -> list[Callable[[], object]]:
    """A few tokens after the other."""
    parts = x.split(elements // x.shape[1])
    return [lambda part=part: triton_hadamard.hadamard(part, transform) for part in parts]


def total(works: list[Callable[[], object]]) -> Row:
    """The microseconds of all of them."""
    row = timed(works)
    return {name: value * len(works) if name == "microseconds" else value for name, value in row.items()}


PARTS: dict[str, Callable[[], Iterator[Row]]] = {
    "one_row": one_row, "few_rows": few_rows, "integers": integers, "hadamard": hadamard,
}  # fmt: skip

if __name__ == "__main__":
    main()
