"""The output folder: filled aside, and given its name only when it is complete.

``.NAME.writing`` beside it holds a lock and what is being written. A run with a journal works elsewhere
(``run/journal.py``), so that neither removes what the other has begun.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jointquant.errors import require
from jointquant.files.manifest import check_replaceable, replace_folder, write_manifest
from jointquant.files.working_folder import discard, empty, locked, make_working_folder
from jointquant.trust.permissions import current_umask, seal
from jointquant.trust.target import check_file_target, check_target


def check_output(out: Path, overwrite: bool) -> None:
    """Raises InputError when ``out`` is no place for output, or is not empty and may not be overwritten."""
    check_target(out)
    if out.is_dir() and any(out.iterdir()):
        require(overwrite, f"output folder {out} is not empty: expected a new one, or `overwrite=True`")
        check_replaceable(out)


@contextmanager
def output_folder(out: Path, overwrite: bool) -> Iterator[Path]:
    """A folder to fill; it becomes ``out`` when the block ends well, and vanishes when it does not.

    Raises:
        InputError: ``out`` is no place for output, or another process is writing it.
    """
    check_output(out, overwrite)
    with _written_aside(out) as partial:
        partial.mkdir(mode=0o700)
        yield partial
        write_manifest(partial)
        seal(partial)
        replace_folder(partial, out)


@contextmanager
def output_file(out: Path, overwrite: bool) -> Iterator[Path]:
    """A file to write; it becomes ``out`` when the block ends well, and vanishes when it does not.

    Raises:
        InputError: ``out`` is no place for a file, or exists and may not be overwritten, or another process is
            writing it.
    """
    check_file_target(out, overwrite)
    with _written_aside(out) as partial:
        yield partial
        partial.chmod(0o644 & ~current_umask())
        partial.replace(out)


def partial_of(out: Path) -> Path:
    """Where output is written before it gets its name."""
    return out.with_name(f".{out.name}.writing") / "output"


@contextmanager
def _written_aside(out: Path) -> Iterator[Path]:
    """Where ``out`` is to be written; what a process that was killed left there is removed."""
    partial = partial_of(out)
    parents = make_working_folder(partial.parent)
    with locked(partial.parent, out):
        empty(partial.parent)
        try:
            yield partial
        except BaseException:
            discard(partial.parent, parents)
            raise
        discard(partial.parent, [])
