"""Checkpoints whose weights are stored in eight or four bits, read as the numbers that those bits stand for.

Such a weight is two tensors: numbers of few bits, and a scale for each block of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from jointquant.errors import InputError, require
from jointquant.models.source import StoredTensors, check_finite

FOUR_BITS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""What the lower three bits of an E2M1 number stand for; the fourth is the sign."""
SCALE_BIAS = 127


class Form(Protocol):
    """How a weight is stored."""

    @property
    def ends(self) -> tuple[str, str]:
        """What the names of its numbers and of its scales end with, behind the name of the weight."""

    def shape(self, numbers: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a weight whose numbers have this one."""

    def restored(self, numbers: Tensor, scales: Tensor) -> Tensor:
        """The weight, in bfloat16."""


@dataclass(frozen=True)
class Mxfp4:
    """MXFP4 (OCP Microscaling Formats 1.0, sections 5.2 and 5.3.3), as gpt-oss has its experts.

    Numbers are uint8 [experts, out, blocks, 16], two a byte, the first in the low bits; scales uint8
    [experts, out, blocks], exponents of two plus 127. The weight is [experts, in, out].
    """

    ends: tuple[str, str] = ("_blocks", "_scales")

    def shape(self, numbers: tuple[int, ...]) -> tuple[int, ...]:
        """[experts, in, out]."""
        require(len(numbers) == 4, f"MXFP4 numbers of shape {list(numbers)}: expected [experts, out, blocks, 16]")
        experts, outputs, blocks, size = numbers
        return experts, 2 * size * blocks, outputs

    def restored(self, numbers: Tensor, scales: Tensor) -> Tensor:
        """[experts, in, out]; one expert after the other, for integers take room."""
        table = torch.tensor([*FOUR_BITS, *(-value for value in FOUR_BITS)], dtype=torch.bfloat16)
        weight = torch.empty(self.shape(tuple(numbers.shape)), dtype=torch.bfloat16)
        for own, packed, exponents in zip(weight, numbers, scales, strict=True):
            values = table[torch.stack([packed & 15, packed >> 4], -1).flatten(-2).int()]  # [out, blocks, 32]
            own.copy_(torch.ldexp(values, exponents.int().unsqueeze(-1) - SCALE_BIAS).flatten(1).t())
        return weight


@dataclass(frozen=True)
class BlockFp8:
    """E4M3 numbers [out, in] with a scale for each block (DeepSeek-V3, arXiv 2412.19437, section 3.3).

    Attributes:
        block: rows and columns of one.
    """

    block: tuple[int, int] = (128, 128)
    ends: tuple[str, str] = ("", "_scale_inv")

    def shape(self, numbers: tuple[int, ...]) -> tuple[int, ...]:
        """The same."""
        return numbers

    def restored(self, numbers: Tensor, scales: Tensor) -> Tensor:
        """Numbers times the scales of their blocks."""
        rows, columns = self.block
        wide = scales.float().repeat_interleave(rows, 0).repeat_interleave(columns, 1)
        require(
            wide.shape[0] >= numbers.shape[0] and wide.shape[1] >= numbers.shape[1],
            f"scales {list(scales.shape)} of blocks {rows} x {columns} beside a weight {list(numbers.shape)}: expected "
            "one a block",
        )
        return (numbers.float() * wide[: numbers.shape[0], : numbers.shape[1]]).bfloat16()


def form_of(settings: Any) -> Form:
    """How a model's weights are stored, by the ``quantization_config`` of its configuration.

    Raises:
        InputError: in a way that is not read here.
    """
    data: dict[str, Any] = settings if isinstance(settings, dict) else settings.to_dict()
    method, block = str(data.get("quant_method"))[:40], data.get("weight_block_size")
    if method == "mxfp4":
        return Mxfp4()
    if method == "fp8" and isinstance(block, (list, tuple)) and len(block) == 2:
        rows, columns = block
        if all(type(size) is int and size > 0 for size in block):
            return BlockFp8((rows, columns))
    raise InputError(
        f"the model is already quantized ({method}): expected one in floating point, or one whose weights are fp8 in "
        "blocks, or mxfp4"
    )


class Dequantized(StoredTensors):
    """The tensors of a model, those that are stored in few bits as bfloat16.

    Args:
        source: the tensors as they are stored.
        form: how.

    Raises:
        InputError: scales without numbers.
    """

    def __init__(self, source: StoredTensors, form: Form) -> None:
        self.source, self.form = source, form
        numbers, scales = form.ends
        shapes = source.shapes()
        self._pairs: dict[str, tuple[str, str]] = {}
        for stored in (name for name in shapes if name.endswith(scales)):
            name = stored.removesuffix(scales)
            require(f"{name}{numbers}" in shapes, f"tensor {stored} has scales of {name}{numbers}, which is not there")
            self._pairs[name] = f"{name}{numbers}", stored

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every weight, and of every other tensor."""
        stored = self.source.shapes()
        inside = {name for pair in self._pairs.values() for name in pair}
        found = {name: self.form.shape(stored[numbers]) for name, (numbers, _) in self._pairs.items()}
        return {name: shape for name, shape in stored.items() if name not in inside} | found

    def dtype(self, name: str) -> torch.dtype:
        """The dtype of a tensor."""
        return torch.bfloat16 if name in self._pairs else self.source.dtype(name)

    def load(self, name: str) -> Tensor:
        """A tensor. Raises InputError for scales that overflow."""
        if name not in self._pairs:
            return self.source.load(name)
        numbers, scales = (self.source.load(stored) for stored in self._pairs[name])
        return check_finite(name, self.form.restored(numbers, scales))

    def identity(self) -> dict[str, Any]:
        """Of what is stored."""
        return self.source.identity()

    def digests(self) -> dict[str, str]:
        """Of what is stored."""
        return self.source.digests()

    def changed(self, digests: Mapping[str, str]) -> str | None:
        """Of what is stored."""
        return self.source.changed(digests)
