"""Files of others: regular, of a bounded size, and inside the folder they are read from."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from jointquant.errors import InputError, require

MODEL_CACHE = re.compile(r"(models|datasets|spaces)--.+")
ADDITIONAL_TEMPLATES = "additional_chat_templates"  # the one folder beside a model's files that transformers reads


def open_regular(path: Path) -> int:
    """A file descriptor to read ``path`` from; the caller closes it.

    Raises:
        InputError: there is none, it may not be read, or it is a folder, a pipe, a socket or a device.
    """
    try:
        # Opening a pipe without O_NONBLOCK waits for its writer, who may never come.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {_reason(error)}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputError(f"{path} is no regular file: expected one")
    return descriptor


def read_bytes(path: Path, limit: int) -> bytes:
    """All of a regular file of at most ``limit`` bytes. Raises InputError for any other."""
    descriptor = open_regular(path)
    with os.fdopen(descriptor, "rb") as file:
        size = os.fstat(descriptor).st_size
        require(size <= limit, f"{path} has {size} bytes: expected at most {limit}")
        return file.read(limit)


def read_text(path: Path, limit: int) -> str:
    """A regular UTF-8 file of at most ``limit`` bytes. Raises InputError for any other."""
    try:
        return read_bytes(path, limit).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from None


def is_plain_name(name: str) -> bool:
    """Whether ``name`` is that of a file in a folder: no path, printable, of a length that file systems take."""
    return (
        name not in ("", ".", "..")
        and name.isprintable()
        and not set(name) & {"/", "\\", ":"}
        and len(name.encode("utf-8")) <= 255
    )


def boundary(folder: Path) -> Path:
    """The folder that links in a model folder may not leave: itself, or the repository of a hub's cache.

    Such a cache keeps ``models--owner--name/snapshots/COMMIT/FILE`` as links to ``models--owner--name/blobs/…``.
    """
    real = Path(os.path.realpath(folder))
    repository = real.parent.parent
    cached = real.parent.name == "snapshots" and MODEL_CACHE.fullmatch(repository.name) is not None
    return repository if cached else real


def check_entries(folder: Path) -> None:
    """Refuse a model folder in which anything is neither a file nor a folder, or is a link that leads out of it.

    Raises:
        InputError: names the entry.
    """
    inside = boundary(folder)
    for place in (folder, folder / ADDITIONAL_TEMPLATES):
        if place.is_dir():
            for entry in os.scandir(place):
                _check_entry(entry, inside)


def _check_entry(entry: os.DirEntry[str], inside: Path) -> None:
    path = entry.path
    if entry.is_symlink():
        target = os.path.realpath(path)
        within = os.path.commonpath([target, inside]) == str(inside)
        require(within, f"{path} is a link out of the model folder: expected what it names inside {inside}")
        if not os.path.exists(target):
            return  # whoever needs it says that it is missing
    mode = os.stat(path).st_mode
    require(stat.S_ISREG(mode) or stat.S_ISDIR(mode), f"{path} is a pipe, a socket or a device: expected a file")


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
