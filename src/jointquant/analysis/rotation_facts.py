"""What a file of rotations holds."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jointquant.calibration.rotation_files import read_rotations
from jointquant.rotations.bundle import Rotations
from jointquant.runtime.whole_artifact import check_rotations


def describe_rotations(source: str | Path) -> list[dict[str, Any]]:
    """What is inside a file of rotations, an artifact, or what ``rotate`` wrote; another program's file, too.

    Returns:
        For each tensor ``name``, ``shape``, ``error`` (‖RᵀR − I‖∞), ``steps`` of its training, and the loss before the
        first and before the last of them, ``first_loss`` and ``last_loss`` (None: it was not learned, or nothing says
        how), and ``undone``: of the trainings that ended above their start, which was kept, ``trainings``, ``of`` how
        many, and the objective at ``start`` and ``end`` (None: none).

    Raises:
        InputError: no such file, one that holds no rotations, or a matrix that is not orthogonal.
    """
    check_rotations(Path(source))
    return facts_of_rotations(read_rotations(Path(source), "r1"))


def facts_of_rotations(rotations: Rotations) -> list[dict[str, Any]]:
    """The same of rotations at hand."""
    facts = []
    for name, tensor in rotations.tensors().items():
        trace = rotations.traces.get(name)
        losses = trace.losses if trace is not None else ()
        facts.append(
            {
                "name": name,
                "shape": list(tensor.shape),
                "error": _error(tensor),
                "steps": len(losses),
                "first_loss": losses[0] if losses else None,
                "last_loss": losses[-1] if losses else None,
                "undone": None if trace is None or trace.undone is None else asdict(trace.undone),
            }
        )
    return facts


def _error(rotation: Tensor) -> float:
    identity = torch.eye(rotation.shape[-1], dtype=rotation.dtype)
    return float((rotation.mT @ rotation - identity).abs().max())
