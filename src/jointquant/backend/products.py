"""Products with weights: on a CPU, float32 matrices are multiplied by oneDNN where this torch has it.

torch itself asks the BLAS library that it was built with, MKL in most builds, which has no AVX-512 for processors of
another maker, where oneDNN has. Rows of its products do not depend on how many others there are, nor
on the number of threads (``tests/backend/test_products.py``), so parts of a product are the same bits wherever it is
cut.
"""

from __future__ import annotations

import platform
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from jointquant.backend.devices import X86

LEAST_SUMMANDS, LEAST_OUTPUTS = 32, 16
"""Sizes of a weight [out, in] from which oneDNN computes the product: calling it takes longer than torch's own."""


def linear_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + b, differentiable once: [..., in], [out, in], [out] → [..., out]."""
    if not multiplied_by_onednn(x, weight):
        return functional.linear(x, weight, bias)
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        product: Tensor = _Linear.apply(x, weight)
        return product if bias is None else product + bias
    return _onednn(x, weight, bias)


def add_product(total: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Add x Wᵀ to a total [rows, out], in place: [rows, in], [out, in]."""
    if multiplied_by_onednn(x, weight):
        return total.add_(_onednn(x, weight))
    return total.addmm_(x, weight.t())


def multiplied_by_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether ``linear_product`` leaves x [..., in] and W [out, in] to oneDNN: not small weights, nor single rows."""
    return (
        x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and x.shape[-1] >= LEAST_SUMMANDS
        and len(weight) >= LEAST_OUTPUTS
        and x.numel() > x.shape[-1]
        and has_onednn()
    )


@cache
def has_onednn() -> bool:
    """Whether this torch has oneDNN's product of float32 matrices, on the processors that it was measured on."""
    return (
        platform.machine() in X86
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(_dense(x), _dense(weight), bias, "none", [], "")
    return product


def _dense(x: Tensor) -> Tensor:
    """The same without gaps between rows or columns, for which oneDNN has no fast product."""
    return x if x.ndim == 2 and x.t().is_contiguous() else x.contiguous()


class _Linear(torch.autograd.Function):
    """x Wᵀ: [..., in], [out, in] → [..., out]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _onednn(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        of_x = linear_product(gradient, weight.t()) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return of_x, None
        return of_x, linear_product(gradient.reshape(-1, len(weight)).t(), x.reshape(-1, x.shape[-1]).t())


class Linear(nn.Linear):
    """A linear of a model, whose product is ``linear_product``."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] → [..., out]."""
        return linear_product(x, self.weight, self.bias)


def hasten(model: nn.Module) -> None:
    """Let the linears of a model compute their products so, in place; their tensors stay as they are."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear
