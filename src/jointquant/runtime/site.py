"""The input of a site in the forms that products ask for, each made once however many linears read it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor

from jointquant.backend.devices import elements_in_cache
from jointquant.quantization.integer import Codes
from jointquant.quantization.one_token import encode_token
from jointquant.quantization.ranges import DynamicRange, SearchedRange

if TYPE_CHECKING:
    from jointquant.runtime.input_path import InputPath


Made = TypeVar("Made")


@dataclass(frozen=True)
class TokenCodes:
    """Integers of a product's left side.

    Attributes:
        integers: [rows, columns] in the dtype that a kernel reads.
        scale: float32 [rows, 1].
        zero_point: int32 [rows], where the integers do not account for it.
    """

    integers: Tensor
    scale: Tensor
    zero_point: Tensor | None = None


class SiteInput:
    """One input of a site.

    Args:
        x: [..., in].
        path: what happens to it before the product.
        buffers: of the linear, with what the path knows from calibration.
    """

    def __init__(self, x: Tensor, path: InputPath, buffers: Mapping[str, Tensor]) -> None:
        self.x, self.path, self.buffers = x, path, buffers
        self.rows = x.reshape(-1, x.shape[-1])
        self._values: Tensor | None = None
        self._made: dict[object, Any] = {}

    def serves(self, path: InputPath, buffers: Mapping[str, Tensor]) -> bool:
        """Whether a linear behind ``path``, with ``buffers`` of its own, sees the same. Comparing waits for a GPU."""
        if self.path != path or self.buffers.keys() != buffers.keys() or (buffers and self.x.device.type != "cpu"):
            return False
        return all(torch.equal(value, buffers[name]) for name, value in self.buffers.items())

    def values(self) -> Tensor:
        """[rows, in] behind the path, in x's dtype."""
        if self._values is None:
            self._values = self._whole() if self.rows.requires_grad else self._in_chunks()
        return self._values

    def _whole(self) -> Tensor:
        return self.path(self.rows, self.buffers)

    def _in_chunks(self) -> Tensor:
        size = self.chunk_rows()
        if not self.path or size >= len(self.rows):
            return self._whole()
        values = torch.empty_like(self.rows)
        for chunk, out in zip(self.rows.split(size), values.split(size), strict=True):
            out.copy_(self.path(chunk, self.buffers))
        return values

    def chunk_rows(self) -> int:
        """Rows that are rotated and quantized together, so that their float32 copies stay in a cache."""
        return max(1, elements_in_cache(self.rows.device) // self.rows.shape[1])

    def centred_codes(self) -> TokenCodes:
        """The integers less their zero points in bfloat16, which holds them: at most 2^b − 1 in size."""

        def write(codes: Codes, out: Tensor) -> None:
            out.copy_(codes.integers.sub_(codes.zero_point).flatten(-2))

        if self._is_one_token():
            return self.once((torch.bfloat16, 0), self._encode_token)
        return self._encoded(torch.bfloat16, 0, write)

    def _is_one_token(self) -> bool:
        quantizer, (count, size) = self.path.quantizer, self.rows.shape
        if count != 1 or self.rows.device.type != "cpu" or self.rows.dtype == torch.float64:
            return False
        return isinstance(quantizer, DynamicRange | SearchedRange) and quantizer.fmt.group_size in (None, size)

    def _encode_token(self) -> TokenCodes:
        quantizer = self.path.quantizer
        assert isinstance(quantizer, DynamicRange | SearchedRange)
        arrived = self.path.arrive(self.rows, self.buffers).squeeze(0)
        integers, scale = encode_token(arrived, quantizer.fmt, quantizer.ratio(self.buffers))
        return TokenCodes(integers.bfloat16().unsqueeze(0), torch.full((1, 1), scale))

    def moved_codes(self) -> TokenCodes:
        """The same in uint8, moved up by 128: for quantizers whose integers less their zero points fit int8."""

        def write(codes: Codes, out: Tensor) -> None:
            out.view(torch.int8).copy_(codes.integers.sub_(codes.zero_point).flatten(-2))
            out.bitwise_xor_(128)

        return self.once("moved", lambda: self._encode(torch.uint8, 0, write))

    def unsigned_codes(self, copies: int) -> TokenCodes:
        """uint8 integers, moved up by 128, and behind them ``copies`` columns of the zero point, moved up alike."""

        def write(codes: Codes, out: Tensor) -> None:
            signed = out.view(torch.int8)  # torch rounds to int8 four times faster than to uint8
            signed[:, :-copies].copy_(codes.integers.flatten(-2))
            signed[:, -copies:].copy_(codes.zero_point.reshape(-1, 1))
            out.bitwise_xor_(128)

        return self._encoded(torch.uint8, copies, write)

    def signed_codes(self) -> TokenCodes:
        """int8 integers, with their zero points."""
        zero_point = torch.empty(len(self.rows), dtype=torch.int32, device=self.rows.device)
        done = 0

        def write(codes: Codes, out: Tensor) -> None:
            nonlocal done
            out.copy_(codes.integers.flatten(-2))
            zero_point[done : done + len(out)] = codes.zero_point.reshape(-1)
            done += len(out)

        def make() -> TokenCodes:
            codes = self._encode(torch.int8, 0, write)
            return TokenCodes(codes.integers, codes.scale, zero_point)

        return self.once("signed", make)

    def once(self, form: object, make: Callable[[], Made]) -> Made:
        """What ``make`` gives, kept under the name of its form for the next linear."""
        if form not in self._made:
            self._made[form] = make()
        return cast("Made", self._made[form])

    def _encoded(self, dtype: torch.dtype, extra: int, write: Callable[[Codes, Tensor], None]) -> TokenCodes:
        return self.once((dtype, extra), lambda: self._encode(dtype, extra, write))

    def _encode(self, dtype: torch.dtype, extra: int, write: Callable[[Codes, Tensor], None]) -> TokenCodes:
        """Chunks of ``rows`` rotated, quantized and written in a form."""
        quantizer = self.path.quantizer
        assert quantizer is not None
        (count, columns), device = self.rows.shape, self.rows.device
        integers = torch.empty(count, columns + extra, dtype=dtype, device=device)
        size = self.chunk_rows()
        scales = []
        for chunk, out in zip(self.rows.split(size), integers.split(size), strict=True):
            codes = quantizer.encode(self.path.arrive(chunk, self.buffers), self.buffers)
            write(codes, out)
            scales.append(codes.scale.reshape(-1, 1).float().expand(len(chunk), 1))  # one for all may stand there once
        return TokenCodes(integers, scales[0] if len(scales) == 1 else torch.cat(scales))


class SharedInput:
    """What the linears of one site share: its last input, until all of them have read it.

    Args:
        readers: how many linears read here.
    """

    def __init__(self, readers: int = 1) -> None:
        self.readers = readers
        self._last: SiteInput | None = None
        self._version: int | None = None
        self._reads = 0

    def __getstate__(self) -> dict[str, Any]:
        """What copies and pickles hold: nothing of an input."""
        return {"readers": self.readers, "_last": None, "_version": None, "_reads": 0}

    def look(self, x: Tensor, path: InputPath, buffers: Mapping[str, Tensor]) -> SiteInput:
        """The input x [..., in], for who looks on; the same object for the same tensor and path."""
        version = None if x.is_inference() else x._version
        last = self._last
        if last is None or last.x is not x or self._version != version or not last.serves(path, buffers):
            last, self._version, self._reads = SiteInput(x, path, buffers), version, 0
        self._last = last
        return last

    def read(self, x: Tensor, path: InputPath, buffers: Mapping[str, Tensor]) -> SiteInput:
        """The same for one of the readers; after the last of them it is forgotten."""
        found = self.look(x, path, buffers)
        self._reads += 1
        if self._reads >= self.readers:
            self._last = None
        return found
