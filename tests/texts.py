"""Short texts: the beginnings of the demo's. Encoding the whole of one takes longer than to quantize a tiny model."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

import jointquant.demo

CHARACTERS = 32_000
TEXTS = Path(tempfile.mkdtemp(prefix="jointquant-texts-"))
"""The folder of ``calibration.txt`` and ``heldout.txt``; every user may read it."""
TEXTS.chmod(0o755)

for _name in ("calibration.txt", "heldout.txt"):
    _whole = (Path(jointquant.demo.__file__).parent / _name).read_text(encoding="utf-8")
    (TEXTS / _name).write_text(_whole[:CHARACTERS], encoding="utf-8")


def _remove(owner: int = os.getpid()) -> None:
    """Not at the end of a process that was forked off."""
    if os.getpid() == owner:
        shutil.rmtree(TEXTS, ignore_errors=True)


atexit.register(_remove)
