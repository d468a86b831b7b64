"""Output belongs to whoever ran the command: nobody else may write it, whatever the umask."""

from __future__ import annotations

import os
from pathlib import Path


def make_folders(path: Path) -> None:
    """Make a folder and those above it that are missing; group and others may not write to any of them."""
    missing = [folder for folder in (path.absolute(), *path.absolute().parents) if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir(mode=0o755)


def seal(folder: Path) -> None:
    """Give a finished output its modes: files 644, folders 755, less what the umask takes; links are left alone."""
    mask = current_umask()
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            path.chmod((0o755 if path.is_dir() else 0o644) & ~mask)


def current_umask() -> int:
    """The process's umask, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
