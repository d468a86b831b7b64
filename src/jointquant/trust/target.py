"""Where output may go: never over the input, never through a link, and never over what is not ours."""

from __future__ import annotations

import os
from pathlib import Path

from jointquant.errors import require

MAX_NAME = 200
"""Bytes of the folder's name: working names are made from it, and file systems take 255."""


def check_target(out: Path) -> None:
    """Refuse a place for an output folder before any work is done.

    Raises:
        InputError: a name that is none, a link, a file, under a file, or a folder that may not be written.
    """
    _check_name(out, "folder")
    require(not os.path.lexists(out) or out.is_dir(), f"output {out} is a file: expected a folder")
    _check_parent(out)


def check_file_target(out: Path, overwrite: bool) -> None:
    """Refuse a place for an output file before any work is done.

    Args:
        out: the file to write.
        overwrite: whether a file that is there may be replaced.

    Raises:
        InputError: a name that is none, a link, a folder, under a file, a folder that may not be written, or a file
            that may not be replaced.
    """
    _check_name(out, "file")
    require(not os.path.lexists(out) or out.is_file(), f"output {out} is a folder: expected a file")
    require(overwrite or not os.path.lexists(out), f"output {out} exists: expected a new file, or `overwrite=True`")
    _check_parent(out)


def _check_name(out: Path, kind: str) -> None:
    shown = str(out)[:200]
    require("\0" not in str(out) and out.name not in ("", ".."), f"output {shown!r} is no name of a {kind}")
    long = max(len(os.fsencode(name)) for name in out.parts)
    require(long <= MAX_NAME, f"output {shown}… has a name of {long} bytes: expected at most {MAX_NAME}")
    require(not os.path.islink(out), f"output {out} is a link: expected the {kind}'s own path")


def _check_parent(out: Path) -> None:
    parent = next(parent for parent in out.absolute().parents if os.path.lexists(parent))
    require(parent.is_dir(), f"output {out} is under {parent}, which is a file: expected a folder")
    require(os.access(parent, os.W_OK | os.X_OK), f"output {out} cannot be made: {parent} may not be written")


def check_apart(out: Path, model: Path) -> None:
    """Raises InputError when output would replace the model it is made of, or lie inside it, or the other way round."""
    output, source = os.path.realpath(out), os.path.realpath(model)
    shared = os.path.commonpath([output, source])
    require(shared != source, f"output {out} is the model's folder or inside it: expected another folder")
    require(shared != output, f"output {out} contains the model's folder {model}: expected another folder")


def check_outside(folder: Path, out: Path) -> None:
    """Raises InputError when a folder that lasts would lie in an output, which may be replaced, or be it."""
    shared = os.path.commonpath([os.path.realpath(folder), os.path.realpath(out)])
    require(shared != os.path.realpath(out), f"{folder} is output {out} or inside it: expected another folder")
