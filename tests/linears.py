"""Packed linears for tests of products, and the product that they stand for."""

from __future__ import annotations

import platform

import torch
from torch import Tensor

from jointquant.quantization.weights import round_to_nearest
from jointquant.runtime.input_path import InputPath
from jointquant.runtime.kernels.interface import Kernel
from jointquant.runtime.kernels.selection import KERNELS
from jointquant.runtime.linear import PackedLinear
from jointquant.runtime.site import SharedInput

X86 = platform.machine() in ("x86_64", "AMD64")


def linear_of(
    out_features: int, in_features: int, fmt, path: InputPath, *, bias: bool = False, seed: int = 0
) -> PackedLinear:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(out_features, in_features, generator=generator) + 0.3
    rounded = round_to_nearest(weight, fmt, "none", torch.float32)
    offset = torch.randn(out_features, generator=generator) if bias else None
    return PackedLinear.of(rounded, offset, path, {})


def tokens(rows: int, in_features: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """With a mean, so that zero points matter."""
    x = torch.randn(rows, in_features, generator=torch.Generator().manual_seed(seed + 1))
    return (x + 0.7 * torch.arange(rows)[:, None]).to(dtype)


def rounded_inputs(linear: PackedLinear, x: Tensor) -> Tensor:
    """What the weight is multiplied with, in float64."""
    values = linear.arriving(x)
    if linear.path.quantizer is not None:
        values = linear.path.quantizer.encode(values, linear.input_buffers()).dequantize()
    return values.double()


def exact(linear: PackedLinear, x: Tensor) -> Tensor:
    """The product in float64, of the same integers."""
    y = rounded_inputs(linear, x) @ linear.quantized_weight().dequantize(torch.float64).T
    return y if linear.bias is None else y + linear.bias.double()


def rounding_bound(linear: PackedLinear, x: Tensor) -> Tensor:
    """What float32 may be wrong by in each sum: four roundings of its terms' sizes summed (terms cancel)."""
    sizes = rounded_inputs(linear, x).abs() @ linear.quantized_weight().dequantize(torch.float64).abs().T
    return 2**-22 * (sizes if linear.bias is None else sizes + linear.bias.double().abs())


def by_kernel(kernel: Kernel, linear: PackedLinear, x: Tensor) -> Tensor:
    inputs = SharedInput().read(x, linear.path, linear.input_buffers())
    return kernel.run(inputs, kernel.prepare(linear.packed_weight(), linear.problem(len(x), x.dtype)))


BY_NAME: dict[str, Kernel] = {kernel.name: kernel for kernel in KERNELS}
