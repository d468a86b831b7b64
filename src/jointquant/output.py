"""The output folder: filled aside, and given its name only when it is complete."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jointquant.errors import require


def check_output(out: Path, overwrite: bool) -> None:
    """Raises InputError when ``out`` exists, is not an empty folder, and may not be overwritten."""
    require(not out.exists() or out.is_dir(), f"output {out} is a file: expected a folder")
    empty = not out.exists() or not any(out.iterdir())
    require(empty or overwrite, f"output folder {out} is not empty: expected a new one, or --overwrite")


@contextmanager
def output_folder(out: Path, overwrite: bool) -> Iterator[Path]:
    """A folder to fill; it becomes ``out`` when the block ends well, and vanishes when it does not."""
    check_output(out, overwrite)
    new_parents = [parent for parent in out.absolute().parents if not parent.exists()]
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.partial")
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir()
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial)
        for parent in new_parents:
            parent.rmdir()
        raise
    if out.exists():
        shutil.rmtree(out)
    partial.rename(out)
