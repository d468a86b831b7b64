"""The parts of a benchmark of programs for GPUs: what is right and how fast, row by row."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from jointquant.backend.devices import resolve_device
from jointquant.errors import require
from report import Result


def measure_parts(
    script: str, described: str | None, parts: Mapping[str, Callable[[], Iterable[dict[str, Any]]]], out: Path
) -> None:
    """Measure the parts that the command line names, write each row, and end with an error where one is wrong.

    Args:
        script: its file's name.
        described: its docstring.
        parts: by name; a row says whether it is ``right``.
        out: the result file where none is named.

    Raises:
        InputError: no GPU, or rows that are off by more than they may.
    """
    parser = argparse.ArgumentParser(description=described, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(parts), help=f"some of {', '.join(parts)}")
    parser.add_argument("--out", type=Path, default=out)
    arguments = parser.parse_args()
    require(resolve_device("auto").type == "cuda", "no GPU here: expected one that torch calls cuda")
    result = Result(arguments.out, f"python benchmarks/{script} --only {arguments.only}", "cuda")
    wrong = []
    for part in arguments.only.split(","):
        for row in parts[part]():
            result.add({"part": part, **row})
            wrong += [row] * (not row["right"])
    require(not wrong, f"{len(wrong)} rows are off by more than they may, such as {wrong[:1]}")
