"""Output belongs to whoever ran the command: nobody else may write it, whatever the umask."""

from __future__ import annotations

import os
import stat
from pathlib import Path

OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def make_folders(path: Path) -> None:
    """Make a folder and those above it that are missing; group and others may not write to any of them."""
    missing = [folder for folder in (path.absolute(), *path.absolute().parents) if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir(mode=0o755)


def seal(folder: Path) -> None:
    """Take the right to write from group and others, of a folder and everything in it; links are left alone."""
    _restrict(folder)
    for path in folder.rglob("*"):
        if not path.is_symlink():
            _restrict(path)


def _restrict(path: Path) -> None:
    mode = stat.S_IMODE(os.stat(path).st_mode)
    if mode & OTHERS_WRITE:
        os.chmod(path, mode & ~OTHERS_WRITE)
