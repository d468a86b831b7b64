"""A whole decoder layer for one new token by the compiled program (``token_step.c``): two calls in the place of sixty.

What a layer is made of is said by ``LayerParts``; the program computes all of it in float32.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from jointquant.quantization.ranges import DynamicRange, SearchedRange
from jointquant.rotations.hadamard import HadamardTransform
from jointquant.runtime.inner_rotation import INPUT_ROTATION, InnerRotation
from jointquant.runtime.input_path import INPUT_MEAN, InputPath
from jointquant.runtime.kernels.compiler import library
from jointquant.runtime.kernels.grids import Grid, grid_of
from jointquant.runtime.kernels.packed_attention import Kept, kept_records, kept_values, record_bytes
from jointquant.runtime.kernels.packed_product import KINDS, ReadableWeight
from jointquant.runtime.kernels.quantized_tokens import MOST_BASE, Arrival, Way

MOST_LINEARS = 3
"""That read one input."""


class _Site(ctypes.Structure):
    """``Site`` of token_step.c."""

    _fields_ = (
        ("way", Way),
        ("grid", Grid),
        ("rounded", ctypes.c_int32),
        ("bits", ctypes.c_int32),
        ("in", ctypes.c_int64),
        ("count", ctypes.c_int64),
        ("weight", ctypes.c_void_p * MOST_LINEARS),
        ("bias", ctypes.c_void_p * MOST_LINEARS),
    )


class _Norm(ctypes.Structure):
    """``Norm`` of token_step.c."""

    _fields_ = (("weight", ctypes.c_void_p), ("eps", ctypes.c_float), ("kind", ctypes.c_int32))


class _Layer(ctypes.Structure):
    """``Layer`` of token_step.c."""

    _fields_ = (
        *((name, _Site) for name in ("attn_in", "o_in", "mlp_in", "down_in")),
        *((name, _Norm) for name in ("attn_norm", "mlp_norm", "query_norm", "key_norm")),
        *((name, ctypes.c_int64) for name in ("hidden", "heads", "kv_heads", "head_dim", "intermediate")),
        ("scaling", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("key_mean", "key_basis", "query_basis")),
        ("turn", Way),
        ("key_grid", Grid),
        ("value_grid", Grid),
    )


@dataclass(frozen=True)
class SiteParts:
    """The linears that read one input.

    Attributes:
        path: the same for all of them.
        buffers: the path's.
        weights: of each.
        biases: float32 [out] of each, or None.
    """

    path: InputPath
    buffers: Mapping[str, Tensor]
    weights: tuple[ReadableWeight, ...]
    biases: tuple[Tensor | None, ...]

    def refusal(self) -> str | None:
        """Why the program does not do this; None: it does."""
        quantizer, transform = self.path.quantizer, self.path.transform
        bits = {weight.weight.fmt.num_bits for weight in self.weights}
        if len(bits) > 1 or len(self.weights) > MOST_LINEARS:
            return f"at most {MOST_LINEARS} linears that read one input, of as many bits each"
        if not isinstance(quantizer, DynamicRange | SearchedRange | None):
            return "inputs whose range is found for each token"
        if quantizer is not None and (
            quantizer.fmt.signed_scale or quantizer.fmt.group_size is not None or bits != {4}
        ):
            return "inputs with one scale a token, before weights of 4 bits"
        if not isinstance(self.path.inner, InnerRotation | None) or (transform and transform.base > MOST_BASE):
            return "an R4 that is a Hadamard transform, or blocks behind one"
        return None


@dataclass(frozen=True)
class NormParts:
    """x / RMS(x) · g: g [size], and what is added to the mean square."""

    weight: Tensor
    eps: float


@dataclass(frozen=True)
class AttentionParts:
    """What happens to queries, keys and values.

    Attributes:
        heads: of queries.
        kv_heads: of keys and values.
        head_dim: size of a head.
        scaling: of the scores.
        query_norm: of each head, or None.
        key_norm: the same of keys.
        key_mean: float32 [kv_heads, head_dim], taken off keys, or None.
        key_basis: float32 [kv_heads, head_dim, head_dim], or None; keys are multiplied by it.
        query_basis: the same for queries.
        transform: R3, or None.
        ranges: of keys and values that are kept as records; None: as values.
    """

    heads: int
    kv_heads: int
    head_dim: int
    scaling: float
    query_norm: NormParts | None = None
    key_norm: NormParts | None = None
    key_mean: Tensor | None = None
    key_basis: Tensor | None = None
    query_basis: Tensor | None = None
    transform: HadamardTransform | None = None
    ranges: tuple[DynamicRange, DynamicRange] | None = None


@dataclass(frozen=True)
class LayerParts:
    """A decoder layer: two norms, attention and a gated MLP with SiLU, each added to the residual stream."""

    attn_in: SiteParts
    o_in: SiteParts
    mlp_in: SiteParts
    down_in: SiteParts
    attn_norm: NormParts
    mlp_norm: NormParts
    attention: AttentionParts

    def refusal(self) -> str | None:
        """Why the program does not do this; None: it does."""
        transform = self.attention.transform
        if transform is not None and transform.base > MOST_BASE:
            return f"an R3 whose dense part has an order of at most {MOST_BASE}"
        found = (site.refusal() for site in (self.attn_in, self.o_in, self.mlp_in, self.down_in))
        return next((reason for reason in found if reason is not None), None)


class TokenStep:
    """A layer as the program is told of it.

    Args:
        parts: of which ``refusal`` has no complaint.
    """

    def __init__(self, parts: LayerParts) -> None:
        self.parts, attention = parts, parts.attention
        self._alive: list[object] = [parts]
        self._told = _Layer(
            *map(self._site, (parts.attn_in, parts.o_in, parts.mlp_in, parts.down_in)),
            *map(_norm, (parts.attn_norm, parts.mlp_norm, attention.query_norm, attention.key_norm)),
            parts.attn_in.weights[0].weight.in_features,
            *(attention.heads, attention.kv_heads, attention.head_dim),
            parts.down_in.weights[0].weight.in_features,
            attention.scaling,
            *(_pointer(x) for x in (attention.key_mean, attention.key_basis, attention.query_basis)),
            Arrival(attention.transform).told(),
            *(grid_of(each.fmt, each.clip_ratio) for each in attention.ranges or ()),
        )
        self._address = ctypes.addressof(self._told)

    @property
    def record_bytes(self) -> tuple[int, int]:
        """Of keys and of values."""
        assert self.parts.attention.ranges is not None
        key, value = (record_bytes(each, self.parts.attention.head_dim) for each in self.parts.attention.ranges)
        return key, value

    def with_records(self, hidden: Tensor, places: tuple[Tensor, Tensor], keys: Tensor, values: Tensor) -> Tensor:
        """The layer's output.

        Args:
            hidden: [1, 1, hidden].
            places: cosines and sines [1, 1, head_dim] of its place, of the same dtype.
            keys: records, uint8 [1, kv_heads, tokens, bytes], the last of each head still to be written: it is.
            values: the same.

        Raises:
            MemoryError: no room for what is computed.
        """
        ranges = self.parts.attention.ranges
        assert ranges is not None
        kept = [kept_records(x, each.fmt.has_zero_point) for x, each in zip((keys, values), ranges, strict=True)]
        last = [x.data_ptr() + (x.shape[2] - 1) * x.stride(2) for x in (keys, values)]
        query = self._to_attention(hidden, places, last, kept)
        return self._from_attention(hidden, query, kept, keys.shape[2])

    def with_values(self, hidden: Tensor, places: tuple[Tensor, Tensor], keep: Any) -> Tensor:
        """The same where keys and values are kept as they are.

        Args:
            hidden: [1, 1, hidden].
            places: as above.
            keep: takes the new token's keys and values [1, kv_heads, 1, head_dim], and returns those of all tokens.
        """
        attention = self.parts.attention
        new = [hidden.new_empty(1, attention.kv_heads, 1, attention.head_dim) for _ in range(2)]
        query = self._to_attention(hidden, places, [x.data_ptr() for x in new], [kept_values(x) for x in new])
        all_of = keep(*new)
        return self._from_attention(hidden, query, [kept_values(x) for x in all_of], all_of[0].shape[2])

    def _to_attention(self, hidden: Tensor, places: tuple[Tensor, Tensor], last: list[int], kept: list[Kept]) -> Tensor:
        """Queries, float32 [heads · head_dim]; the new token's keys and values are written."""
        attention = self.parts.attention
        query = torch.empty(attention.heads * attention.head_dim)
        cosine, sine = places
        left = self._address, hidden.data_ptr(), KINDS[hidden.dtype], cosine.data_ptr(), sine.data_ptr()
        if _functions().step_to_attention(*left, query.data_ptr(), *last, *map(ctypes.addressof, kept)):
            raise MemoryError(f"no memory for a token of {hidden.shape[-1]} channels")
        return query

    def _from_attention(self, hidden: Tensor, query: Tensor, kept: list[Kept], tokens: int) -> Tensor:
        out = torch.empty_like(hidden)
        left = self._address, hidden.data_ptr(), KINDS[hidden.dtype], query.data_ptr()
        if _functions().step_from_attention(*left, *map(ctypes.addressof, kept), tokens, out.data_ptr()):
            raise MemoryError(f"no memory for a token that looks at {tokens}")
        return out

    def _site(self, site: SiteParts) -> _Site:
        quantizer, path, first = site.path.quantizer, site.path, site.weights[0].weight
        mean = site.buffers[INPUT_MEAN].float().contiguous() if path.centred else None
        inner = site.buffers[INPUT_ROTATION].contiguous() if path.inner is not None else None
        self._alive += [mean, inner]
        grid = Grid()
        if isinstance(quantizer, DynamicRange | SearchedRange):
            grid = grid_of(quantizer.fmt, quantizer.ratio(site.buffers))
        return _Site(
            Arrival(path.transform, mean, inner).told(),
            grid,
            quantizer is not None,
            first.fmt.num_bits,
            first.in_features,
            len(site.weights),
            (ctypes.c_void_p * MOST_LINEARS)(*(weight.address for weight in site.weights)),
            (ctypes.c_void_p * MOST_LINEARS)(*map(_pointer, site.biases)),
        )


def _norm(norm: NormParts | None) -> _Norm:
    return _Norm() if norm is None else _Norm(norm.weight.data_ptr(), norm.eps, KINDS[norm.weight.dtype])


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


@cache
def _functions() -> Any:
    """The program, with the types of its functions' arguments."""
    found, pointer, size, word = library(), ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
    found.step_to_attention.argtypes = (pointer, pointer, word, *(pointer,) * 7)
    found.step_from_attention.argtypes = (pointer, pointer, word, *(pointer,) * 3, size, pointer)
    return found
