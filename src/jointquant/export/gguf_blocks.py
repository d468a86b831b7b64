"""The blocks of GGUF's Q4_0, Q4_1 and Q8_0: 32 weights with a float16 scale.

A weight is scale · integer in Q4_0 and Q8_0, and scale · integer + minimum in Q4_1, whose minimum is float16 too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy
import torch
from gguf import GGMLQuantizationType
from numpy.typing import NDArray
from torch import Tensor

from jointquant.backend.operations import double
from jointquant.errors import require
from jointquant.quantization.integer import IntFormat
from jointquant.quantization.weights import QuantizedWeight

GROUP = 32


KINDS = {
    (4, True): GGMLQuantizationType.Q4_0,
    (4, False): GGMLQuantizationType.Q4_1,
    (8, True): GGMLQuantizationType.Q8_0,
}
"""By width and symmetry."""


def kind_of(fmt: IntFormat) -> GGMLQuantizationType:
    """The kind of block that holds a grid."""
    return KINDS[fmt.num_bits, fmt.symmetric]


def block_size(fmt: IntFormat) -> int:
    """Bytes of a block: its scale, its minimum where it has one, its integers."""
    return (2 if fmt.symmetric else 4) + GROUP * fmt.num_bits // 8


def blocks_of(weight: QuantizedWeight, name: str) -> NDArray[numpy.uint8]:
    """The bytes of a weight [out, in]: [out, in / 32 · ``block_size``].

    Q4_0 and Q4_1 store q + 8 for q in [−8, 7]: in byte i of a block, weight i in the low half and weight i + 16 in the
    high one. Q4_1's minimum, −scale · (zero point + 8), is rounded to float16, which moves all weights of its block by
    at most 15 / 2048 of a step. Q8_0 stores q itself.

    Raises:
        InputError: a scale that float16 does not hold exactly, or a minimum beyond its range.
    """
    fmt = weight.fmt
    assert isinstance(fmt, IntFormat)
    assert fmt.group_size == GROUP
    heads = [half_scales(weight.scale, name)]
    if not fmt.symmetric:
        heads.append(half_minima(weight, name))
    codes = weight.codes.unflatten(-1, (-1, GROUP))  # [out, groups, 32]
    if fmt.num_bits == 4:
        shifted = (codes + 8).to(torch.uint8)
        integers = shifted[..., : GROUP // 2] | (shifted[..., GROUP // 2 :] << 4)
    else:
        integers = codes.contiguous().view(torch.uint8)
    return torch.cat([*(bytes_of(head) for head in heads), integers], dim=-1).flatten(1).contiguous().numpy()


def bytes_of(half: Tensor) -> Tensor:
    """float16 [out, groups] → uint8 [out, groups, 2]."""
    return half.contiguous().view(torch.uint8).unflatten(-1, (-1, 2))


def half_scales(scale: Tensor, name: str) -> Tensor:
    """Scales in float16. Raises InputError where that would change one."""
    half = scale.to(torch.float16)
    require(
        bool((half.to(scale.dtype) == scale).all()) and bool(half.isfinite().all()),
        f"the scales of {name} are {str(scale.dtype).removeprefix('torch.')} numbers that float16 does not hold: "
        "expected an artifact made with `weights.scale_dtype=float16` (of the head and embeddings likewise)",
    )
    return half


def half_minima(weight: QuantizedWeight, name: str) -> Tensor:
    """What the integer −8 stands for in each group, float16 [out, groups]. Raises InputError beyond its range."""
    minima = (double(weight.scale) * (-8 - double(weight.zero_point))).to(torch.float16)
    require(bool(minima.isfinite().all()), f"weights of {name} lie beyond float16's range: expected |w| < 65520")
    return minima


@dataclass(frozen=True)
class Blocks:
    """What blocks hold: codes [out, in], int8; scales, and in Q4_1 minima, [out, groups], float16."""

    codes: NDArray[numpy.int8]
    scales: NDArray[numpy.float16]
    minima: NDArray[numpy.float16] | None = None


def integers_of(data: NDArray[numpy.uint8], fmt: IntFormat) -> Blocks:
    """The inverse of ``blocks_of``."""
    blocks = data.reshape(data.shape[0], -1, block_size(fmt))
    start = block_size(fmt) - GROUP * fmt.num_bits // 8
    heads = numpy.ascontiguousarray(blocks[..., :start]).view(numpy.float16)
    minima = None if fmt.symmetric else heads[..., 1]
    stored = numpy.ascontiguousarray(blocks[..., start:])
    if fmt.num_bits == 8:
        return Blocks(stored.view(numpy.int8).reshape(data.shape[0], -1), heads[..., 0])
    halves = numpy.concatenate([stored & 15, stored >> 4], axis=-1).astype(numpy.int8) - numpy.int8(8)
    return Blocks(halves.reshape(data.shape[0], -1), heads[..., 0], minima)


def half_or_full(tensor: Tensor, name: str) -> NDArray[numpy.generic]:
    """A tensor that is not quantized: vectors in float32, matrices in float16.

    Raises:
        InputError: a matrix with values beyond float16's range.
    """
    if tensor.ndim == 1:
        return tensor.float().numpy()
    half = tensor.to(torch.float16)
    require(bool(half.isfinite().all()), f"tensor {name} has values beyond float16's range: expected |w| < 65520")
    peak, kept = tensor.float().abs().amax(), half.float().abs().amax()
    require(bool((kept - peak).abs() <= peak / 8), f"tensor {name} has no value that float16 holds: they are too small")
    return half.numpy()
