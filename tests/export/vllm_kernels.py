"""Plain torch in the place of CPU kernels of vLLM: of those that a processor lacks, and where they round too early.

vLLM's own 4-bit product needs AVX-512 and takes no float32; in bfloat16 it runs where it is there.

Imported by ``vllm_process`` in vLLM's own environment, never by the tests. vLLM still reads the folder, chooses the
scheme, loads and repacks the weights, and calls the kernel with what it has made of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from vllm import _custom_ops
from vllm.model_executor.kernels.linear.scaled_mm.cpu import CPUInt8ScaledMMLinearKernel

NIBBLES = 4 * torch.arange(8, dtype=torch.int32)
BLOCK = 16
"""Output channels that vLLM puts side by side for its 4-bit product."""
MIDDLE = 8
"""What stands for zero in 4-bit weights without a zero point."""


def unpacked(words: Tensor) -> Tensor:
    """int32 [...] → integers 0 to 15, float32 [..., 8]."""
    return (words[..., None] >> NIBBLES & 15).float()


def product_of_int4(
    input: Tensor, q_weight: Tensor, scales: Tensor, zeros: Tensor | None, bias: Tensor | None, **_: Any
) -> Tensor:
    """``cpu_gemm_wna16``: x times W, whose integers lie in blocks of 16 output channels.

    Args:
        input: [..., in].
        q_weight: int32 [out / 16, in · 2].
        scales: [groups, out].
        zeros: int32 [groups, out / 8], or None.
        bias: [out], or None.
    """
    size, groups = input.shape[-1], len(scales)
    codes = unpacked(q_weight).view(len(q_weight), size, BLOCK).transpose(0, 1).reshape(groups, size // groups, -1)
    zero_point = torch.tensor(float(MIDDLE)) if zeros is None else unpacked(zeros).reshape(groups, 1, -1)
    weight = ((codes - zero_point) * scales.float()[:, None]).view(size, -1)
    product = input.float() @ weight
    return (product if bias is None else product + bias.float()).to(input.dtype)


def with_own(own: Callable[..., Tensor], stands: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A product by vLLM's ``own`` kernel, but in float32, which that kernel does not compute in."""

    def product(input: Tensor, *operands: Any, **named: Any) -> Tensor:
        return (stands if input.dtype == torch.float32 else own)(input, *operands, **named)

    return product


def hadamard(value: Tensor, inplace: bool = True) -> Tensor:
    """``hadacore_transform``: [..., n] by Sylvester's matrix of order n, divided by √n; n a power of 2."""
    matrix = torch.ones(1, 1)
    while len(matrix) < value.shape[-1]:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return (value.float() @ (matrix / math.sqrt(len(matrix)))).to(value.dtype)


_prepare = CPUInt8ScaledMMLinearKernel.process_weights_for_onednn


def _keep_weight(self: CPUInt8ScaledMMLinearKernel, layer: torch.nn.Module) -> None:
    self.exact_weight = getattr(layer, self.layer_param_names[0]).t().double()  # [in, out]; oneDNN takes it away
    _prepare(self, layer)


def _exact_product(
    self: CPUInt8ScaledMMLinearKernel, layer: torch.nn.Module, x: Tensor, bias: Tensor | None = None
) -> Tensor:
    """vLLM's integers, their product summed in float64, where whole numbers of this size are exact."""
    _, scale, input_scale, input_zero_point, _ = self._get_layer_params(layer)
    integers, step, zero_point = _custom_ops.onednn_scaled_int8_quant(
        x.reshape(-1, x.shape[-1]), input_scale, input_zero_point, self.config.input_symmetric
    )
    codes = integers.double() if zero_point is None else integers.double() - zero_point.double()
    product = (codes @ self.exact_weight * step.double() * scale.double().view(1, -1)).to(x.dtype)
    return (product if bias is None else product + bias).view(*x.shape[:-1], -1)


def stand_in() -> list[str]:
    """Put the kernels above in where this machine's vLLM has none; returns the names of all that were put in."""
    stands: dict[str, Callable[..., Tensor]] = {
        "cpu_gemm_wna16": product_of_int4,
        "hadacore_transform": hadamard,
    }
    missing = [name for name in stands if not hasattr(torch.ops._C, name)]
    for name in missing:
        setattr(_custom_ops, name, stands[name])
    if "cpu_gemm_wna16" not in missing:
        _custom_ops.cpu_gemm_wna16 = with_own(_custom_ops.cpu_gemm_wna16, product_of_int4)
    CPUInt8ScaledMMLinearKernel.process_weights_for_onednn = _keep_weight
    CPUInt8ScaledMMLinearKernel._apply_weights_onednn = _exact_product
    return [*missing, "onednn_scaled_mm"]
