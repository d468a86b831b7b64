"""GPTQ of many weights of one shape, each with a Hessian of its own: the experts of a layer.

An accelerator takes about as long to start an operation as to do it for one small expert. Here every operation is done
for a whole stack: as many as for one weight, whatever the number of experts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from jointquant.backend.devices import elements_at_once
from jointquant.backend.operations import runs_on
from jointquant.errors import OverflowedError
from jointquant.quantization.gptq import NOT_FINITE, Factor, factorize, rounded_columns
from jointquant.quantization.weights import ClipMethod, QuantizedWeight, WeightFormat


def most_in_stack(shape: Sequence[int], device: torch.device) -> int:
    """How many weights of a shape [out, in] are rounded at once, so that they and their factors stay as small as one
    large weight in parts.
    """
    rows, columns = shape
    return max(1, elements_at_once(device) // (columns * max(rows, 2 * columns)))


def factorize_stack(hessians: Sequence[Tensor], damping: float = 0.01, activation_order: bool = True) -> Factor:
    """As ``factorize``, of several Hessians [in, in] of one size: [n, in, in]. The host waits once for all of them.

    Hessians that cannot be factorised with so little damping are factorised one by one, with more.

    Raises:
        OverflowedError: one of them is not finite.
        ValueError: one is not factorisable even when heavily damped.
    """
    stack = torch.stack(list(hessians))
    diagonal = stack.diagonal(dim1=-2, dim2=-1).clone()
    finite = stack.sum((-2, -1)).isfinite()
    dead = diagonal == 0
    diagonal.masked_fill_(dead, 1.0)
    order = torch.arange(stack.shape[-1], device=stack.device).expand(dead.shape)
    if activation_order:
        order = torch.argsort(diagonal, dim=-1, descending=True, stable=True)
    feedback, factored = _feedback(stack, order.flip(-1), diagonal, damping)
    sound, found = torch.stack([finite, factored]).tolist()
    if not all(sound):
        raise OverflowedError(NOT_FINITE)
    largest = damping
    for number, hessian in enumerate(hessians):
        if not found[number]:
            alone = factorize(hessian, damping, activation_order)
            feedback[number], largest = alone.feedback, max(largest, alone.damping)
    return Factor(feedback, order, largest, dead)


def _feedback(stack: Tensor, backwards: Tensor, diagonal: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """The feedback of each of a stack of Hessians [n, in, in], and whether there is one: bool [n]."""
    numbers = torch.arange(len(stack), device=stack.device)[:, None, None]
    turned = stack[numbers, backwards[:, :, None], backwards[:, None, :]]
    damped = diagonal.gather(-1, backwards)
    damped = damped + damping * damped.mean(-1, keepdim=True)
    turned.diagonal(dim1=-2, dim2=-1).copy_(damped)
    lower, failed = torch.linalg.cholesky_ex(turned.to(runs_on(stack.device, "cholesky")))
    lower, failed = lower.to(stack.device), failed.to(stack.device)
    steps = lower.diagonal(dim1=-2, dim2=-1).clone()
    lower = lower / steps.unsqueeze(-2)
    lower.diagonal(dim1=-2, dim2=-1).zero_()
    return lower.flip(-2, -1).contiguous(), (failed == 0) & steps.sum(-1).isfinite()


def gptq_stack(
    weights: Tensor,
    factor: Factor,
    fmt: WeightFormat,
    clip: ClipMethod = "mse",
    scale_dtype: torch.dtype = torch.float32,
) -> list[QuantizedWeight]:
    """``gptq``, with static groups, of each weight [out, in] of a stack.

    Args:
        weights: [n, out, in].
        factor: of as many Hessians.
        fmt, clip, scale_dtype: as of ``weight_parameters``.
    """
    codes, scale, zero_point = rounded_columns(weights, factor, fmt, clip, scale_dtype)
    parts = zip(codes, scale.to(scale_dtype), zero_point.to(torch.int8), strict=True)
    return [QuantizedWeight(*part, fmt) for part in parts]
