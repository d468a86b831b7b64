"""Launches of programs for GPUs that failed: said once, remembered, and then done by whoever comes next."""

from __future__ import annotations

import warnings
from collections.abc import Hashable
from dataclasses import asdict, dataclass

COMPILER_ERRORS = ("Triton Error", "PassManager::run failed")
"""What errors of Triton's that are no TritonError begin with."""


@dataclass(frozen=True)
class FailedLaunch:
    """A program that this process does not launch again.

    Attributes:
        program: whose.
        what: what it was to compute.
        reason: what the compiler or the driver said.
    """

    program: str
    what: str
    reason: str


_failed: dict[tuple[str, Hashable], FailedLaunch] = {}


class LaunchError(Exception):
    """A program could not be compiled for, or launched on, the device that is here."""


def reason(program: str, problem: Hashable) -> str | None:
    """Why a program is not asked for a problem again; None: nothing has failed."""
    failed = _failed.get((program, problem))
    return None if failed is None else f"its program failed here: {failed.reason}"


def remember(program: str, problem: Hashable, what: str, error: LaunchError) -> None:
    """From now on ``reason`` says why; the first failure of a program is said in one line."""
    first = all(name != program for name, _ in _failed)
    _failed[program, problem] = FailedLaunch(program, what, str(error))
    if first:
        warnings.warn(f"{program} cannot run {what} here, the next kernel does: {error}", stacklevel=2)


def failed_launches() -> list[dict[str, str]]:
    """All of this process, as plain data."""
    return [asdict(failed) for failed in _failed.values()]


def forget() -> None:
    """As if nothing had failed."""
    _failed.clear()


def of_launch(error: Exception) -> LaunchError | None:
    """What an exception says of a launch; None for any other."""
    from triton.errors import TritonError

    if isinstance(error, TritonError) or str(error).startswith(COMPILER_ERRORS):
        return LaunchError(" ".join(f"{type(error).__name__}: {error}".split())[:200])
    return None
