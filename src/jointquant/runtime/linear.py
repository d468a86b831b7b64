"""Linears whose input may pass an online Hadamard transform and a dynamic quantizer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from jointquant.quantization.integer import IntFormat, fake_quantize
from jointquant.quantization.packing import pack, packed_size, unpack
from jointquant.quantization.weights import QuantizedWeight
from jointquant.rotations.hadamard import HadamardTransform


@dataclass(frozen=True)
class InputPath:
    """What happens to a linear's input before the product, in this order.

    Attributes:
        transform: the online Hadamard transform (R4), or None.
        fmt: the integer grid of the activations, or None.
        clip_ratio: the part of each token's range that is kept.
    """

    transform: HadamardTransform | None = None
    fmt: IntFormat | None = None
    clip_ratio: float = 1.0

    def __bool__(self) -> bool:
        return self.transform is not None or self.fmt is not None

    def rotate(self, x: Tensor) -> Tensor:
        """The input in the basis that the weight expects."""
        return x if self.transform is None else self.transform.apply(x)

    def quantize(self, x: Tensor) -> Tensor:
        """The rotated input, quantized and dequantized."""
        return x if self.fmt is None else fake_quantize(x, self.fmt, self.clip_ratio)

    def __call__(self, x: Tensor) -> Tensor:
        """[..., in] → [..., in]."""
        return self.quantize(self.rotate(x))


class OnlineLinear(nn.Linear):
    """A linear with floating-point weights behind an input path."""

    def __init__(self, in_features: int, out_features: int, bias: bool, path: InputPath) -> None:
        super().__init__(in_features, out_features, bias)
        self.path = path

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] → [..., out]."""
        return super().forward(self.path(x))

    def extra_repr(self) -> str:
        """Shown by print(model)."""
        return f"{super().extra_repr()}, {self.path}"


class PackedLinear(nn.Module):
    """A linear with packed integer weights behind an input path: the reference execution, dequantize and multiply.

    Buffers:
        weight_packed: int32 [out, words], dense along the input dimension.
        weight_scale: [out, groups].
        weight_zero_point: int32 [words, groups], dense along the output dimension; absent for symmetric grids.
    """

    weight_packed: Tensor
    weight_scale: Tensor
    weight_zero_point: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool,
        path: InputPath,
        fmt: IntFormat,
        scale_dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.path, self.fmt = in_features, out_features, path, fmt
        groups, words = fmt.num_groups(in_features), packed_size(in_features, fmt.num_bits)
        self.register_buffer("weight_packed", torch.zeros(out_features, words, dtype=torch.int32))
        self.register_buffer("weight_scale", torch.zeros(out_features, groups, dtype=scale_dtype))
        if not fmt.symmetric:
            rows = packed_size(out_features, fmt.num_bits)
            self.register_buffer("weight_zero_point", torch.zeros(rows, groups, dtype=torch.int32))
        self.bias = nn.Parameter(torch.zeros(out_features), requires_grad=False) if bias else None

    @classmethod
    def of(cls, weight: QuantizedWeight, bias: Tensor | None, path: InputPath) -> PackedLinear:
        """A linear that holds ``weight``."""
        out_features, in_features = weight.codes.shape
        linear = cls(in_features, out_features, bias is not None, path, weight.fmt, weight.scale.dtype)
        linear.weight_packed = pack(weight.codes, weight.fmt.num_bits)
        linear.weight_scale = weight.scale
        if not weight.fmt.symmetric:
            linear.weight_zero_point = pack(weight.zero_point, weight.fmt.num_bits, dim=0)
        if bias is not None:
            linear.bias = nn.Parameter(bias, requires_grad=False)
        return linear

    def quantized_weight(self) -> QuantizedWeight:
        """The integers, scales and zero points, unpacked."""
        shape = (self.out_features, self.in_features)
        codes = unpack(self.weight_packed, self.fmt.num_bits, shape)
        if self.fmt.symmetric:
            zero_point = torch.zeros_like(self.weight_scale, dtype=torch.int8)
        else:
            groups = self.weight_scale.shape[1]
            zero_point = unpack(self.weight_zero_point, self.fmt.num_bits, (self.out_features, groups), dim=0)
        return QuantizedWeight(codes, self.weight_scale, zero_point, self.fmt)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] → [..., out]."""
        weight = self.quantized_weight().dequantize(x.dtype)
        return functional.linear(self.path(x), weight, self.bias)

    def extra_repr(self) -> str:
        """Shown by print(model)."""
        return f"in_features={self.in_features}, out_features={self.out_features}, {self.fmt}, {self.path}"
