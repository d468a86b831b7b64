"""Launches that failed: said once, remembered, and then done by the next kernel of the table."""

from __future__ import annotations

import warnings
from dataclasses import replace

from jointquant.runtime.kernels.interface import Problem

COMPILER_ERRORS = ("Triton Error", "PassManager::run failed")
"""What errors of Triton's that are no TritonError begin with."""

_failed: dict[tuple[str, Problem], str] = {}


class LaunchError(Exception):
    """A kernel's program could not be compiled for, or launched on, the device that is here."""


def reason(kernel: str, problem: Problem) -> str | None:
    """Why a kernel is not asked for a problem again, whatever its rows; None: nothing has failed."""
    failed = _failed.get((kernel, replace(problem, rows=0)))
    return None if failed is None else f"its program failed here: {failed}"


def remember(kernel: str, problem: Problem, error: LaunchError) -> None:
    """From now on ``reason`` says why; the first failure of a kernel is said in one line."""
    first = all(name != kernel for name, _ in _failed)
    _failed[kernel, replace(problem, rows=0)] = str(error)
    if first:
        shape = f"[{problem.out_features}, {problem.in_features}]"
        warnings.warn(f"{kernel} cannot run a weight {shape} here, the next kernel does: {error}", stacklevel=2)


def forget() -> None:
    """As if nothing had failed."""
    _failed.clear()


def of_launch(error: Exception) -> LaunchError | None:
    """What an exception says of a launch; None for any other."""
    from triton.errors import TritonError

    if isinstance(error, TritonError) or str(error).startswith(COMPILER_ERRORS):
        return LaunchError(" ".join(f"{type(error).__name__}: {error}".split())[:200])
    return None
