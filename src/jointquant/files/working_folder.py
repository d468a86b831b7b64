"""Folders beside an output in which it is made: one process at a time works there."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from jointquant.errors import InputError, require
from jointquant.trust.permissions import make_folders

LOCK_NAME, OWNER_NAME = "lock", "owner"
KEPT = (LOCK_NAME, OWNER_NAME)
"""What of a working folder is no work."""


def make_working_folder(folder: Path) -> list[Path]:
    """Make a folder to work in, for its owner alone, if it is not there; returns the parents that were made for it.

    Raises:
        InputError: a file has its name.
    """
    require(
        not os.path.lexists(folder) or folder.is_dir(), f"{folder} is a file: expected none, it is where work is done"
    )
    parents = [parent for parent in folder.absolute().parents if not parent.exists()]
    make_folders(folder.absolute().parent)
    folder.mkdir(mode=0o700, exist_ok=True)
    return parents


@contextmanager
def locked(folder: Path, out: Path) -> Iterator[None]:
    """While open, no other process works in the folder; the system lets go when this one dies.

    Raises:
        InputError: another one does.
    """
    lock = FileLock(folder / LOCK_NAME, timeout=0, mode=0o600)
    owner = folder / OWNER_NAME
    try:
        lock.acquire()
    except Timeout:
        who = owner.read_text(encoding="utf-8") if owner.is_file() else "another process"
        raise InputError(f"another run is filling {out} ({who}): wait for it, or choose another --out") from None
    try:
        owner.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def empty(folder: Path) -> None:
    """Remove the work in a folder that is locked."""
    for path in folder.iterdir():
        if path.name not in KEPT:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def discard(folder: Path, parents: list[Path]) -> None:
    """Remove a working folder, and of the parents that were made for it those that hold nothing else."""
    shutil.rmtree(folder)
    for parent in parents:
        if not any(parent.iterdir()):
            parent.rmdir()
