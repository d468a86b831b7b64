"""The program of this folder's C files: compiled when first asked for, kept in the user's cache, loaded by ctypes.

Nothing needs it: where there is no compiler, ``library`` says so, and other kernels do the work. The program uses AVX2,
which ``-mavx2`` names, and threads by OpenMP: the same runtime as torch's, which is loaded under the same name already.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch

from jointquant.backend.devices import X86

SOURCES = tuple(sorted(Path(__file__).parent.glob("*.[ch]")))
COMPILERS = ("cc", "gcc", "clang")
"""Asked in this order where the environment variable CC names none."""
FLAGS = ("-std=gnu11", "-O3", "-mavx2", "-mfma", "-mf16c", "-fopenmp", "-fPIC", "-shared")
SECONDS = 120
"""In which a compiler must have finished."""
CAPABLE = ("AVX2", "AVX512")
"""What torch calls processors that have the program's instructions."""


class NotCompiledError(Exception):
    """Why the program cannot run here."""


def library() -> ctypes.CDLL:
    """The compiled program. Raises NotCompiledError, in one line, where there is none."""
    found = _library()
    if isinstance(found, str):
        raise NotCompiledError(found)
    return found


def missing() -> str | None:
    """Why there is no program; None: it can run."""
    found = _library()
    return found if isinstance(found, str) else None


@cache
def _library() -> ctypes.CDLL | str:
    if platform.system() != "Linux" or platform.machine() not in X86:
        return "is compiled on Linux with an x86 processor alone"
    if torch.backends.cpu.get_cpu_capability() not in CAPABLE:
        return "needs a processor with AVX2"
    compiler = os.environ.get("CC") or next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        return f"needs a C compiler: none of {', '.join(COMPILERS)} is installed"
    try:
        return ctypes.CDLL(str(_compiled(compiler)))
    except (OSError, subprocess.SubprocessError) as error:
        words = getattr(error, "stderr", None) or str(error)
        return f"could not be compiled by {compiler}: {' '.join(words.split())[:200]}"


def _compiled(compiler: str) -> Path:
    """The shared object of these sources by this compiler: in the cache, or made now."""
    text = b"".join(source.read_bytes() for source in SOURCES)
    name = hashlib.sha256(text + repr((_identity(compiler), FLAGS)).encode()).hexdigest()[:32]
    folder = cache_folder()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / f"packed_rows-{name}.so"
    if not (path.is_file() and path.stat().st_uid == os.getuid()):
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            made = Path(scratch) / path.name
            programs = [str(source) for source in SOURCES if source.suffix == ".c"]
            command = [compiler, *FLAGS, *programs, "-o", str(made), "-lm"]
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=SECONDS)
            made.replace(path)  # whole or not there, whoever else compiles it now
    return path


def _identity(compiler: str) -> str:
    """Its path and what it says of its version."""
    said = subprocess.run([compiler, "--version"], check=True, capture_output=True, text=True, timeout=SECONDS)
    return f"{compiler} {said.stdout}"


def cache_folder() -> Path:
    """Where compiled programs are kept: in ``$XDG_CACHE_HOME``, else ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jointquant" / "kernels"
