"""Which kernels a model's linears run, why, and how to change it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass

import torch
from torch import Tensor, nn

from jointquant.runtime.kernels.selection import choose, mode_named, reasons
from jointquant.runtime.linear import PackedLinear


@dataclass(frozen=True)
class KernelChoice:
    """The kernel of one linear for inputs of some rows.

    Attributes:
        module: the linear's name.
        rows: tokens of the input.
        kernel: the kernel that runs.
        reasons: why those before it in the table do not, by their names.
    """

    module: str
    rows: int
    kernel: str
    reasons: dict[str, str]


def kernel_choices(
    model: nn.Module, rows: Sequence[int] = (1, 512), dtype: torch.dtype | None = None
) -> list[KernelChoice]:
    """What runs in each packed linear of a model, where no gradient is wanted.

    Args:
        model: a loaded artifact.
        rows: numbers of tokens.
        dtype: of the inputs; None: that of the model's parameters.
    """
    kind = dtype or next(model.parameters()).dtype
    found = []
    for name, linear in packed_linears(model):
        for count in rows:
            problem = linear.problem(count, kind)
            chosen = choose(problem, linear.mode).name
            found.append(KernelChoice(name, count, chosen, reasons(problem, linear.mode)))
    return found


def use_kernels(model: nn.Module, mode: str) -> None:
    """Let all packed linears of a model run the kernels of ``mode``, in place: auto, repacked, integers, dense or
    reference.

    Raises:
        InputError: another name.
    """
    known = mode_named(mode)
    for _, linear in packed_linears(model):
        linear.mode = known


def packed_linears(model: nn.Module) -> Iterator[tuple[str, PackedLinear]]:
    """All of a model, with their names."""
    for name, module in model.named_modules():
        if isinstance(module, PackedLinear):
            yield name, module


def second_form_bytes(model: nn.Module) -> int:
    """Bytes that kernels keep of a model's packed weights besides what is stored: 0 where they read them in place."""
    return sum(map(_second_form_bytes, (linear for _, linear in packed_linears(model))))


def _second_form_bytes(linear: PackedLinear) -> int:
    stored = {tensor.untyped_storage().data_ptr() for tensor in linear.buffers()}
    kept = {id(tensor): tensor for tensor in _tensors(linear.prepared_weights())}.values()
    others = [tensor for tensor in kept if tensor.is_mkldnn or _storage(tensor) not in stored]
    return sum(tensor.numel() * tensor.element_size() for tensor in others)  # oneDNN's tensors have no nbytes


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _tensors(value: object) -> Iterator[Tensor]:
    """All of them in dataclasses, tuples and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(tuple(value.values()))
    elif isinstance(value, tuple):
        for part in value:
            yield from _tensors(part)
    elif is_dataclass(value):
        yield from _tensors(tuple(getattr(value, field.name) for field in fields(value)))
