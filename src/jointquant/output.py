"""The output folder: filled aside, and given its name only when it is complete."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jointquant.ranks import Ranks
from jointquant.trust.permissions import current_umask, make_folders, seal
from jointquant.trust.target import check_file_target, check_target


def check_output(out: Path, overwrite: bool) -> None:
    """Raises InputError when ``out`` is no place for output, or is not empty and may not be overwritten."""
    check_target(out, overwrite)


@contextmanager
def output_folder(out: Path, overwrite: bool) -> Iterator[Path]:
    """A folder to fill; it becomes ``out`` when the block ends well, and vanishes when it does not."""
    check_output(out, overwrite)
    new_parents = [parent for parent in out.absolute().parents if not parent.exists()]
    make_folders(out.parent)
    partial = partial_of(out)
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(mode=0o700)
    try:
        yield partial
        seal(partial)
    except BaseException:
        shutil.rmtree(partial)
        for parent in new_parents:
            parent.rmdir()
        raise
    if out.exists():
        shutil.rmtree(out)
    partial.rename(out)


@contextmanager
def joined_output(out: Path, overwrite: bool, ranks: Ranks) -> Iterator[Path]:
    """As ``output_folder``, which one of several ranks fills before the eyes of the others."""
    if not ranks.leads:
        yield partial_of(out)
        return
    with output_folder(out, overwrite) as folder:
        yield folder


def partial_of(out: Path) -> Path:
    """Where output is filled before it gets its name."""
    return out.with_name(f".{out.name}.partial")


@contextmanager
def output_file(out: Path, overwrite: bool) -> Iterator[Path]:
    """A file to write; it becomes ``out`` when the block ends well, and vanishes when it does not.

    Raises:
        InputError: ``out`` is no place for a file, or exists and may not be overwritten.
    """
    check_file_target(out, overwrite)
    make_folders(out.parent)
    partial = partial_of(out)
    try:
        yield partial
        partial.chmod(0o644 & ~current_umask())
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    partial.replace(out)
