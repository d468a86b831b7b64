"""All rotations of one model, and their file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from jointquant.errors import InputError, require
from jointquant.files.durable import save_tensors
from jointquant.rotations.undone import Undone
from jointquant.trust.safetensors_header import read_header, read_metadata
from jointquant.trust.strict_json import parse_object

ROTATIONS_NAME = "rotations.safetensors"
METADATA_KEY = "jointquant"
ORTHOGONAL_TO = 1e-6


@dataclass(frozen=True)
class Trace:
    """How a rotation was learned.

    Attributes:
        losses: before each step.
        angles: in radians, that each step turned.
        undone: the trainings that were undone, since they ended above their start; None: none.
    """

    losses: tuple[float, ...]
    angles: tuple[float, ...]
    undone: Undone | None = None

    @classmethod
    def of(cls, losses: Sequence[float], angles: Sequence[float], undone: Undone | None = None) -> Trace:
        """In six digits, as files hold it: a run that goes on reports what one that was not stopped does."""
        if undone is not None:
            start, end = _short([undone.start, undone.end])
            undone = replace(undone, start=start, end=end) if undone.trainings else None
        return cls(_short(losses), _short(angles), undone)

    def to_dict(self) -> dict[str, Any]:
        """As plain data, equal to what JSON makes of it; that nothing was undone goes without saying."""
        found: dict[str, Any] = {"losses": list(self.losses), "angles": list(self.angles)}
        return found if self.undone is None else found | {"undone": asdict(self.undone)}


@dataclass(frozen=True)
class Rotations:
    """What is merged into the weights; R3 and R4 are plain Hadamard transforms and need no tensors.

    Attributes:
        r1: [hidden, hidden] float64: none, one for all layers, or one per layer.
        r2: per layer [kv_heads, head_dim, head_dim] float64; empty when there is none.
        scales: per layer, SmoothQuant's scales by site; empty when there are none. They are not saved.
        traces: how each learned rotation came to be, by the name of its tensor ("r1", "r1.0", "r2.0", …).
    """

    r1: tuple[Tensor, ...] = ()
    r2: tuple[Tensor, ...] = ()
    traces: dict[str, Trace] = field(default_factory=dict)
    scales: tuple[dict[str, Tensor], ...] = ()

    @property
    def undone(self) -> dict[str, Undone]:
        """By the name of its tensor, the trainings that were undone."""
        return {name: trace.undone for name, trace in self.traces.items() if trace.undone is not None}

    def scales_of(self, layer: int) -> dict[str, Tensor]:
        """SmoothQuant's scales of one layer by site: [in], or [kv_heads, head_dim] at o_in."""
        return self.scales[layer] if self.scales else {}

    def r1_of(self, layer: int) -> Tensor | None:
        """R1 of one layer; −1 is the last one."""
        return self.r1[layer if len(self.r1) > 1 else 0] if self.r1 else None

    def r2_of(self, layer: int) -> Tensor | None:
        """R2 of one layer."""
        return self.r2[layer] if self.r2 else None

    def basis_change(self, layer: int) -> Tensor | None:
        """R1ᵢᵀR1ᵢ₊₁ [hidden, hidden]: from the basis in which layer i leaves the residual stream to the next layer's.

        None where all layers share a basis, and after the last layer.
        """
        if layer + 1 >= len(self.r1):
            return None
        return self.r1[layer].T @ self.r1[layer + 1]

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name: "r1" or "r1.0", "r1.1", …, and "r2.0", …."""
        single = len(self.r1) == 1
        named = {"r1" if single else f"r1.{index}": rotation for index, rotation in enumerate(self.r1)}
        return named | {f"r2.{index}": rotation for index, rotation in enumerate(self.r2)}

    def save(self, folder: Path) -> None:
        """Write ``rotations.safetensors`` into ``folder``; nothing when there is no rotation."""
        stored = self.tensors()
        if stored:
            traces = {name: trace.to_dict() for name, trace in self.traces.items()}
            about = json.dumps({"convention": "x -> x R", "traces": traces}, sort_keys=True)
            save_tensors(folder / ROTATIONS_NAME, stored, {METADATA_KEY: about})

    @classmethod
    def load(cls, path: Path) -> Rotations:
        """Read what :meth:`save` wrote.

        Args:
            path: the file, or the folder that holds it as ``rotations.safetensors``.

        Raises:
            InputError: no such file, not a file of rotations, or a matrix in it that is not orthogonal.
        """
        file = path / ROTATIONS_NAME if path.is_dir() else path
        require(file.exists(), f"no rotations at {path}: expected a {ROTATIONS_NAME}, or an artifact that has one")
        read_header(file)
        metadata = read_metadata(file)
        require(METADATA_KEY in metadata, f"{file} is not a file of rotations: expected metadata {METADATA_KEY!r}")
        about = parse_object(metadata[METADATA_KEY].encode(), f"the metadata of {file}")
        try:
            with safe_open(file, framework="pt") as opened:
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise InputError(f"{file} is not readable: {' '.join(str(error).split())[:200]}") from None
        for name, tensor in tensors.items():
            require(
                _is_orthogonal(tensor), f"{name} in {file} is not orthogonal: expected float64 [..., n, n], RᵀR = I"
            )
        single = (tensors["r1"],) if "r1" in tensors else ()
        traces = _traces(about, file)
        return cls(single or _numbered(tensors, "r1", file), _numbered(tensors, "r2", file), traces)


def _traces(about: dict[str, Any], file: Path) -> dict[str, Trace]:
    """How each rotation was learned, as :meth:`Rotations.save` wrote it. Raises InputError for anything else."""
    try:
        return {str(name): _trace(trace) for name, trace in about["traces"].items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise InputError(f"{file} has no traces of its rotations in its metadata: expected losses and angles") from None


def _trace(data: dict[str, Any]) -> Trace:
    undone = data.get("undone")
    found = None if undone is None else Undone.from_dict(undone)
    return Trace(tuple(map(float, data["losses"])), tuple(map(float, data["angles"])), found)


def _numbered(tensors: dict[str, Tensor], name: str, file: Path) -> tuple[Tensor, ...]:
    """``name.0``, ``name.1``, … in order. Raises InputError when one is missing."""
    count = sum(key.startswith(f"{name}.") for key in tensors)
    for index in range(count):
        require(f"{name}.{index}" in tensors, f"{file} lacks {name}.{index}: expected {count} of them, from 0 on")
    return tuple(tensors[f"{name}.{index}"] for index in range(count))


def _is_orthogonal(rotation: Tensor) -> bool:
    if rotation.dtype != torch.float64 or rotation.ndim < 2 or rotation.shape[-1] != rotation.shape[-2]:
        return False
    identity = torch.eye(rotation.shape[-1], dtype=rotation.dtype)
    return bool((rotation.mT @ rotation - identity).abs().max() < ORTHOGONAL_TO)


def _short(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(float(f"{value:.6g}") for value in values)
