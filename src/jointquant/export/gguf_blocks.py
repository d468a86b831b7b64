"""The blocks of GGUF's Q4_0 and Q8_0: 32 weights with a float16 scale; a weight is scale · integer."""

from __future__ import annotations

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from jointquant.errors import require
from jointquant.quantization.integer import IntFormat
from jointquant.quantization.weights import QuantizedWeight

GROUP = 32


def blocks_of(weight: QuantizedWeight, name: str) -> NDArray[numpy.uint8]:
    """The bytes of a weight [out, in]: [out, in / 32 · 18] for 4 bits, [out, in / 32 · 34] for 8.

    Q4_0 stores q + 8 for q in [−8, 7]: in byte i of a block, weight i in the low half and weight i + 16 in the high
    one. Q8_0 stores q itself.

    Raises:
        InputError: a scale that float16 does not hold exactly.
    """
    fmt = weight.fmt
    assert isinstance(fmt, IntFormat)
    assert fmt.group_size == GROUP
    assert fmt.symmetric
    scale = half_scales(weight.scale, name).contiguous().view(torch.uint8).unflatten(-1, (-1, 2))  # [out, groups, 2]
    codes = weight.codes.unflatten(-1, (-1, GROUP))  # [out, groups, 32]
    if fmt.num_bits == 4:
        shifted = (codes + 8).to(torch.uint8)
        integers = shifted[..., : GROUP // 2] | (shifted[..., GROUP // 2 :] << 4)
    else:
        integers = codes.contiguous().view(torch.uint8)
    return torch.cat([scale, integers], dim=-1).flatten(1).contiguous().numpy()


def half_scales(scale: Tensor, name: str) -> Tensor:
    """Scales in float16. Raises InputError where that would change one."""
    half = scale.to(torch.float16)
    require(
        bool((half.to(scale.dtype) == scale).all()) and bool(half.isfinite().all()),
        f"the scales of {name} are {str(scale.dtype).removeprefix('torch.')} numbers that float16 does not hold: "
        "expected an artifact made with `weights.scale_dtype=float16` (of the head and embeddings likewise)",
    )
    return half


def integers_of(data: NDArray[numpy.uint8], num_bits: int) -> tuple[NDArray[numpy.int8], NDArray[numpy.float16]]:
    """The inverse of ``blocks_of``: codes [out, in] and scales [out, groups]."""
    size = 2 + GROUP * num_bits // 8
    blocks = data.reshape(data.shape[0], -1, size)
    scales = numpy.ascontiguousarray(blocks[..., :2]).view(numpy.float16)[..., 0]
    stored = numpy.ascontiguousarray(blocks[..., 2:])
    if num_bits == 8:
        return stored.view(numpy.int8).reshape(data.shape[0], -1), scales
    halves = numpy.concatenate([stored & 15, stored >> 4], axis=-1).astype(numpy.int8) - numpy.int8(8)
    return halves.reshape(data.shape[0], -1), scales


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
