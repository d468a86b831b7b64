"""Folders beside an output in which it is made: one process at a time works there.

A name proves nothing: what lies there is used only if it is a folder of this user's, reached through no link, that is
empty or has the lock of an earlier run in it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from jointquant.errors import InputError, require
from jointquant.trust.permissions import make_folders

LOCK_NAME, OWNER_NAME = "lock", "owner"
KEPT = (LOCK_NAME, OWNER_NAME)
"""What of a working folder is no work."""
MARKS = {LOCK_NAME, "complete.json"}
"""One of these is in every folder that a run has worked in; the second is the last to be cleared up."""

NO_LOCKS = (errno.EBADF, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP)
"""File systems on which a folder itself cannot be locked; the lock file is all there is then."""


def make_working_folder(folder: Path) -> list[Path]:
    """Make a folder to work in, for its owner alone, if it is not there; returns the parents that were made for it.

    Raises:
        InputError: something else has its name.
    """
    parents = [parent for parent in folder.absolute().parents if not parent.exists()]
    make_folders(folder.absolute().parent)
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        check_ours(folder)
    return parents


def check_ours(folder: Path) -> None:
    """Refuse a working folder that no run of this user has made; take away what others may do in one that is ours.

    Raises:
        InputError: a file, a link, somebody else's, or a folder with other things in it.
    """
    status = folder.lstat()
    for is_kind, kind in ((stat.S_ISLNK, "link"), (stat.S_ISREG, "file")):
        require(
            not is_kind(status.st_mode),
            f"{folder} is a {kind}: expected none, it is where work is done (remove it, or choose another `out`)",
        )
    require(stat.S_ISDIR(status.st_mode), f"{folder} is no folder: expected none, it is where work is done")
    require(
        status.st_uid == os.geteuid(),
        f"{folder} belongs to user {status.st_uid}: expected none of somebody else, it is where work is done "
        "(remove it, or choose another `out`)",
    )
    lock, names = folder / LOCK_NAME, os.listdir(folder)
    require(
        not names or bool(MARKS.intersection(names)),
        f"{folder} holds {sorted(names)[0] if names else ''} and was left by no run: expected none, it is where work "
        "is done (move it away, or choose another `out`)",
    )
    for path in (lock, folder / OWNER_NAME):
        plain = not os.path.lexists(path) or (stat.S_ISREG(path.lstat().st_mode) and path.lstat().st_nlink == 1)
        require(plain, f"{path} is no plain file: expected one, or none (remove it, or choose another `out`)")
    if stat.S_IMODE(status.st_mode) & 0o077:
        folder.chmod(0o700)


@contextmanager
def locked(folder: Path, out: Path) -> Iterator[None]:
    """While open, no other process works in the folder; the system lets go when this one dies.

    The folder itself is locked, and a file in it for file systems on which that does not work.

    Raises:
        InputError: another one does.
    """
    lock, descriptor = FileLock(folder / LOCK_NAME, timeout=0, mode=0o600), os.open(folder, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        if not (_locks(descriptor) and _acquires(lock)):
            raise InputError(f"another run is filling {out} ({_owner(folder)}): wait for it, or choose another `out`")
        _write_owner(folder / OWNER_NAME)
        yield
    finally:
        try:
            if lock.is_locked:
                (folder / OWNER_NAME).unlink(missing_ok=True)
        finally:
            lock.release()
            os.close(descriptor)


def _locks(descriptor: int) -> bool:
    """Whether a folder is locked now, or cannot be on this file system; not, where another process has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in NO_LOCKS
    return True


def _acquires(lock: FileLock) -> bool:
    try:
        lock.acquire()
    except Timeout:
        return False
    return True


def _owner(folder: Path) -> str:
    path = folder / OWNER_NAME
    plain = os.path.lexists(path) and stat.S_ISREG(path.lstat().st_mode)
    return path.read_text(encoding="utf-8", errors="replace")[:200] if plain else "another process"


def _write_owner(path: Path) -> None:
    """Who works here, in a new file: what has its name may be a link to another one."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(f"process {os.getpid()} on {socket.gethostname()}")


def empty(folder: Path) -> None:
    """Remove the work in a folder that is locked."""
    for path in folder.iterdir():
        if path.name not in KEPT:
            remove(path)


def remove(path: Path) -> None:
    """A file, a link itself, or a folder with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def discard(folder: Path, parents: list[Path]) -> None:
    """Remove a working folder, and of the parents that were made for it those that hold nothing else."""
    shutil.rmtree(folder)
    for parent in parents:
        if not any(parent.iterdir()):
            parent.rmdir()
