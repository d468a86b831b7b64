"""Files of rotations: ours, plain safetensors, and what torch saved (read by its weights-only loader).

What is not ours goes by names: ``R1`` for the residual stream, ``R2`` for the values, in any case, alone or at the end
of a module's name that holds the layer's number (``model.layers.0.self_attn.R2``); a lone tensor is what was asked for.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from jointquant.calibration.training import ModelSizes
from jointquant.errors import InputError, require
from jointquant.files.durable import load_tensors
from jointquant.models.pickles import load_pickle
from jointquant.rotations.bundle import METADATA_KEY, Rotations
from jointquant.rotations.orthogonal import EXACTLY, orthogonalized
from jointquant.trust.safetensors_header import read_header, read_metadata

PICKLES = (".pt", ".pth", ".bin")
NAME = re.compile(r"(?:^|[._])(r[12])(?:[._](\d+))?(?:\.weight)?$", re.IGNORECASE)
LAYER = re.compile(r"(?:^|\.)(\d+)\.")
NEARLY = 1e-3
"""‖RᵀR − I‖∞ up to which a matrix of another program counts as a rotation, whose arithmetic was less exact."""
MOVED = 1e-6
"""How far the nearest orthogonal matrix may be without a note."""

LOG = logging.getLogger(__name__)


def read_rotations(source: Path, lone: str, sizes: ModelSizes | None = None) -> Rotations:
    """The rotations of a file, whoever wrote it.

    Args:
        source: the file, or a folder that holds it as ``rotations.safetensors``.
        lone: what a tensor without a telling name is: "r1" or "r2".
        sizes: of the model: an R2 that all heads of a layer share is repeated for each of them. None: it stays.

    Raises:
        InputError: no such file, one that holds something else, or a matrix that is not orthogonal.
    """
    if not source.is_file():
        return Rotations.load(source)
    if source.suffix in PICKLES:
        return _foreign(load_pickle(source, lone), source, lone, sizes)
    read_header(source)
    if METADATA_KEY in read_metadata(source):
        return Rotations.load(source)
    try:
        tensors = load_tensors(source)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{source} is not readable: {' '.join(str(error).split())[:200]}") from None
    return _foreign(tensors, source, lone, sizes)


def _foreign(tensors: dict[str, Tensor], file: Path, lone: str, sizes: ModelSizes | None) -> Rotations:
    """Rotations of named tensors that another program wrote."""
    found: dict[str, dict[int, Tensor]] = {"r1": {}, "r2": {}}
    for name, tensor in tensors.items():
        kind, layer = _place(name, lone if len(tensors) == 1 else "", file)
        for index, rotation in _by_layer(kind, layer, tensor):
            require(index not in found[kind], f"{file} holds {kind.upper()} of layer {index} twice: expected it once")
            found[kind][index] = rotation
    r1, r2 = (_in_order(kind, found[kind], file) for kind in ("r1", "r2"))
    heads = 0 if sizes is None else sizes.num_key_value_heads
    return Rotations(r1, tuple(each.expand(heads, -1, -1).clone() if each.ndim == 2 and heads else each for each in r2))


def _place(name: str, lone: str, file: Path) -> tuple[str, int | None]:
    """Which rotation a tensor is, and of which layer."""
    match = NAME.search(name)
    if match is None:
        require(bool(lone), f"{file} holds a tensor {name[:80]!r}: expected R1, and R2 with the number of its layer")
        return lone, None
    number = match[2] or next(iter(LAYER.findall(name)), None)
    return match[1].lower(), None if number is None else int(number)


def _by_layer(kind: str, layer: int | None, tensor: Tensor) -> list[tuple[int, Tensor]]:
    """A tensor as rotations of layers: without a number, a stack of them is one of all layers."""
    stacked = layer is None and tensor.ndim > 2
    return list(enumerate(tensor.unbind())) if stacked else [(layer or 0, tensor)]


def _in_order(kind: str, rotations: dict[int, Tensor], file: Path) -> tuple[Tensor, ...]:
    name, count = kind.upper(), len(rotations)
    for index in range(count):
        require(index in rotations, f"{file} lacks {name} of layer {index}: expected {count} of them, from 0 on")
    return tuple(nearest_rotation(rotations[index], f"{name} {index}", file) for index in range(count))


def nearest_rotation(stored: Tensor, name: str, file: Path) -> Tensor:
    """The orthogonal matrix nearest to one that another program wrote: [..., n, n] → the same in float64.

    Raises:
        InputError: it is no square matrix of numbers, or too far from orthogonal.
    """
    square = (
        stored.ndim >= 2 and stored.numel() > 0 and stored.shape[-1] == stored.shape[-2] and stored.is_floating_point()
    )
    require(square, f"{name} in {file} is {list(stored.shape)} of {stored.dtype}: expected square matrices of numbers")
    rotation = stored.to(torch.float64)
    error = (rotation.mT @ rotation - torch.eye(rotation.shape[-1], dtype=torch.float64)).abs().amax().item()
    if not error <= NEARLY:  # NaN included
        raise InputError(f"{name} in {file} is not orthogonal, RᵀR differs from I by {error:.2g}: expected a rotation")
    nearest = orthogonalized(rotation, EXACTLY)
    if (moved := (nearest - rotation).abs().amax().item()) > MOVED:
        LOG.info("%s in %s is orthogonal to %.1g: the nearest rotation is used, %.1g away", name, file, error, moved)
    return nearest.contiguous()
