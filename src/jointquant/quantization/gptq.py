"""GPTQ: round column by column, moving each column's error onto the columns not yet rounded.

Source: Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
algorithm 1; activation order from the authors' reference code. It is written as LDLQ, which Chee et al. ("QuIP", arXiv
2307.13304) prove to be the same rounding: it needs one Cholesky factorisation of H and no inverse. Rows are independent
of each other, so linears that share an input are stacked along the output dimension and share one factor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from jointquant.backend.devices import elements_at_once, has_triton, is_nvidia
from jointquant.backend.launches import of_launch, reason, remember
from jointquant.backend.operations import runs_on
from jointquant.backend.products import add_product, multiplied_by_onednn
from jointquant.errors import OverflowedError
from jointquant.quantization.integer import IntFormat, to_groups
from jointquant.quantization.weights import ClipMethod, QuantizedWeight, WeightFormat, weight_parameters

MAX_DAMPING_TRIES = 8
NOT_FINITE = "the Hessian of a site's inputs is not finite: the calibration activations overflowed"

BLOCK, SMALL_BLOCK = 128, 16
"""Columns whose errors are carried on by one product; columns that are rounded one by one in between."""

PROGRAM = "gptq_triton"

FAR = 512
"""Columns whose errors are carried on by oneDNN, not fewer: of every shape of product it keeps half a megabyte."""

SMALLEST_BAND, LARGEST_BAND, BANDS = 128, 512, 8
"""Rows of a Hessian that are summed by one product, and how many such bands there are between these sizes; a Hessian of
the largest or less is one band.

More bands leave out more of what is the mirror image of the rest, and let several ranks work at once; small ones take
longer a number. Measured on a CPU core, 1024 tokens, at 512, 256 and 128 rows: 768 inputs 9.6, 8.3 and 7.5 ms; 2048
inputs 57, 53 and 53; 4096 inputs 204, 196 and 201.
"""


@dataclass(frozen=True)
class Factor:
    """What rounding needs of a Hessian, shared by all linears that read the same input; or of a stack of Hessians.

    Attributes:
        feedback: [..., in, in] M, strictly upper triangular, columns in ``order``: H + damping = (I + M) D (I + M)ᵀ
            with D diagonal. Column j is rounded where the errors of the columns before it put it:
            wⱼ + Σᵢ (wᵢ − ŵᵢ) Mᵢⱼ.
        order: [..., in] the order in which columns are rounded.
        damping: the share of the mean diagonal that was added for the factorisation to succeed, the largest of a stack.
        dead: [..., in] bool, columns whose input was always zero (rounded as zero).
    """

    feedback: Tensor
    order: Tensor
    damping: float
    dead: Tensor

    @property
    def places(self) -> Tensor | tuple[Tensor, Tensor]:
        """``order`` as an index of what is [..., in, out]."""
        if self.order.ndim == 1:
            return self.order
        return torch.arange(len(self.order), device=self.order.device).unsqueeze(1), self.order


def factorize(hessian: Tensor, damping: float = 0.01, activation_order: bool = True) -> Factor:
    """Factor of H = XᵀX ([in, in]), or of a multiple of it: what is rounded with it does not depend on a factor.

    Damping grows tenfold while the Cholesky factorisation fails. The Hessian is read, not changed.

    Raises:
        OverflowedError: H is not finite.
        ValueError: it is not factorisable even when heavily damped.
    """
    diagonal = hessian.diagonal().clone()
    finite = torch.isfinite(hessian.sum())  # one number, where a mask would be a quarter of the matrix
    dead = diagonal == 0
    diagonal.masked_fill_(dead, 1.0)
    order = (
        torch.argsort(diagonal, descending=True, stable=True)
        if activation_order
        else torch.arange(len(diagonal), device=hessian.device)
    )
    backwards = order.flip(0)  # H = L Lᵀ with both ends turned is H = V Vᵀ with V upper triangular
    diagonal = diagonal[backwards]
    for _ in range(MAX_DAMPING_TRIES):
        lower, factored = lower_factor(hessian, backwards, diagonal + damping * diagonal.mean())
        sound, found = torch.stack([finite, factored.to(finite.device)]).tolist()  # the host waits once for both
        if not sound:
            raise OverflowedError(NOT_FINITE)
        if found:
            lower /= lower.diagonal().clone()
            lower.diagonal().zero_()
            return Factor(turn_around_(lower.to(hessian.device)), order, damping, dead)
        del lower  # before another is made
        damping *= 10
    raise ValueError(f"the Hessian is not positive definite even with damping {damping:g}")


def lower_factor(hessian: Tensor, order: Tensor, diagonal: Tensor) -> tuple[Tensor, Tensor]:
    """L with LLᵀ = H, the rows and columns of H in an order, with another diagonal; and whether it is one: a bool.

    It takes the place of one copy of H whose columns lie in a row, as LAPACK asks: no other is made.
    """
    lower = hessian[order.unsqueeze(1), order].to(runs_on(hessian.device, "cholesky")).t()
    lower.diagonal().copy_(diagonal)
    failed = torch.empty((), dtype=torch.int32, device=lower.device)
    torch.linalg.cholesky_ex(lower, out=(lower, failed))
    return lower, (failed == 0) & torch.isfinite(lower.diagonal().sum())


def turn_around_(matrix: Tensor) -> Tensor:
    """A square matrix with both ends turned, in place, some rows at a time."""
    size = len(matrix)
    for start in range(0, size // 2, BLOCK):
        stop = min(start + BLOCK, size // 2)
        above, below = matrix[start:stop], matrix[size - stop : size - start]
        turned = above.flip(0, 1)
        above.copy_(below.flip(0, 1))
        below.copy_(turned)
    if size % 2:
        matrix[size // 2].copy_(matrix[size // 2].flip(0))
    return matrix


def gptq(
    weight: Tensor,
    factor: Factor,
    fmt: WeightFormat,
    clip: ClipMethod = "mse",
    scale_dtype: torch.dtype = torch.float32,
    groups: Literal["static", "sequential"] = "static",
) -> QuantizedWeight:
    """Round ``weight`` [out, in] so that ‖X(W − Ŵ)ᵀ‖ stays small, X the inputs behind the factor.

    Of a large matrix some rows are rounded at a time.

    Args:
        weight: W.
        factor: of the inputs' Hessian; for ``sequential`` groups in the order of the columns.
        fmt, clip, scale_dtype: as of ``weight_parameters``.
        groups: ``static`` scales are chosen once, on the weights before any update, so groups stay contiguous whatever
            the order; ``sequential`` ones when a group's turn comes, where the errors of all columns before it have
            moved it (the reference code without static groups).
    """
    rows = max(1, elements_at_once(weight.device) // weight.shape[1])
    rounded = _gptq_rows if groups == "static" else _gptq_rows_by_group
    return QuantizedWeight.joined([rounded(part, factor, fmt, clip, scale_dtype) for part in weight.split(rows)])


def _gptq_rows_by_group(
    weight: Tensor, factor: Factor, fmt: WeightFormat, clip: ClipMethod, scale_dtype: torch.dtype
) -> QuantizedWeight:
    work = weight.float().clone()
    work.masked_fill_(factor.dead, 0)
    columns = Columns(
        work.t().contiguous(), torch.ones_like(work.t()), torch.zeros_like(work.t()), factor.feedback, fmt
    )
    found: list[tuple[Tensor, Tensor]] = []

    def choose(moved: Tensor, start: int, stop: int) -> None:
        """The scales of the group of columns [start, stop), ``moved`` [group, out] as they are now."""
        scale, zero_point = weight_parameters(to_groups(moved.t().contiguous(), fmt), fmt, clip, scale_dtype)
        found.append((scale.squeeze(-1), zero_point.squeeze(-1)))  # [out, 1]
        columns.scale[start:stop], columns.zero_point[start:stop] = (part.t() for part in found[-1])

    codes = columns.round(fmt.group_size or work.shape[1], choose).t().contiguous()
    scale, zero_point = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
    return QuantizedWeight(codes, scale.to(scale_dtype), zero_point.to(torch.int8), fmt)


def _gptq_rows(
    weight: Tensor, factor: Factor, fmt: WeightFormat, clip: ClipMethod, scale_dtype: torch.dtype
) -> QuantizedWeight:
    codes, scale, zero_point = rounded_columns(weight, factor, fmt, clip, scale_dtype)
    return QuantizedWeight(codes, scale.to(scale_dtype), zero_point.to(torch.int8), fmt)


def rounded_columns(
    weight: Tensor, factor: Factor, fmt: WeightFormat, clip: ClipMethod, scale_dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """``gptq`` with static groups of a weight [..., out, in]: int8 [..., out, in], float32 twice [..., out, groups].

    Before ``out`` there is nothing, or one weight for each of a stack of factors.
    """
    work = weight.float().clone()
    work.masked_fill_(factor.dead.unsqueeze(-2), 0)
    scale, zero_point = weight_parameters(to_groups(work, fmt), fmt, clip, scale_dtype)
    scale, zero_point = scale.squeeze(-1), zero_point.squeeze(-1)  # [..., out, groups]
    in_order = replace(factor, order=factor.order // (fmt.group_size or work.shape[-1])).places
    scales, zero_points = (
        x.mT[in_order].contiguous() if x.shape[-1] > 1 else x.mT.expand(work.mT.shape) for x in (scale, zero_point)
    )
    columns = Columns(work.mT[factor.places].contiguous(), scales, zero_points, factor.feedback, fmt)
    del work
    codes = torch.empty_like(weight, dtype=torch.int8, memory_format=torch.contiguous_format)
    codes.mT[factor.places] = columns.round()
    return codes, scale, zero_point


class Columns:
    """The columns of a weight in the order of their rounding, as contiguous rows: every tensor is [..., in, out].

    Columns are rounded in blocks, and in small blocks inside: errors reach what lies behind the block by one product,
    what lies behind the small block inside the block by another, and only the columns of the small block one by one.
    Weights of a stack, with a ``feedback`` [..., in, in] each, are rounded by the same operations at the same time.
    """

    def __init__(self, weight: Tensor, scale: Tensor, zero_point: Tensor, feedback: Tensor, fmt: WeightFormat) -> None:
        self.weight, self.scale, self.zero_point, self.feedback, self.fmt = weight, scale, zero_point, feedback, fmt
        self.errors = torch.empty_like(weight)  # w − ŵ, as far as columns are rounded
        self.codes = torch.empty_like(weight, dtype=torch.int8)

    def round(self, block: int = BLOCK, choose: Callable[[Tensor, int, int], None] | None = None) -> Tensor:
        """The codes, int8; ``choose`` is shown each block of columns, where the errors before it would have them."""
        size = self.weight.shape[-2]
        for start in range(0, size, block):
            stop = min(start + block, size)
            moved = self._moved(_between(self.weight, start, stop), 0, start, start, stop)
            if choose is not None:
                choose(self._settled(moved, start, stop), start, stop)
            for first in range(start, stop, SMALL_BLOCK):
                last = min(first + SMALL_BLOCK, stop)
                near = self._moved(_between(moved, first - start, last - start), start, first, first, last)
                self._round_one_by_one(near, first, last)
        return self.codes

    def _moved(self, columns: Tensor, start: int, stop: int, first: int, last: int) -> Tensor:
        """``columns``, which are [first, last), where the errors of the columns [start, stop) put them."""
        moved = columns.clone(memory_format=torch.contiguous_format)
        feedback, errors = self.feedback[..., start:stop, first:last].mT, _between(self.errors, start, stop)
        if moved.ndim == 3:
            return moved.baddbmm_(feedback, errors) if start < stop else moved
        return moved.addmm_(feedback, errors) if stop - start < FAR else add_product(moved, feedback, errors.t())

    def _settled(self, moved: Tensor, start: int, stop: int) -> Tensor:
        """The columns [start, stop) that answer the errors before them best, were they not rounded themselves.

        ``moved`` has each column where it goes when the columns between stay at their weights. Those move too: of the
        moves δ all together, δ(I + M) = moved − weight inside the block.
        """
        weight, place = _between(self.weight, start, stop), runs_on(moved.device, "solve")
        inside, moves = (part.to(place) for part in (self.feedback[..., start:stop, start:stop].mT, moved - weight))
        return weight + torch.linalg.solve_triangular(inside, moves, upper=False, unitriangular=True).to(weight)

    def _round_one_by_one(self, near: Tensor, first: int, last: int) -> None:
        """The columns [first, last), which ``near`` holds as the errors of all others have moved them."""
        inside = self.feedback[..., first:last, first:last]
        known = (self.weight, self.scale, self.zero_point, self.errors, self.codes)
        parts = (near, *(_between(x, first, last) for x in known))
        if isinstance(self.fmt, IntFormat) and has_program(near.device) and launched(parts, inside, self.fmt):
            return
        for index, (column, weight, scale, zero_point, error, codes) in enumerate(
            zip(*(part.unbind(-2) for part in parts), strict=True)
        ):
            rounded = self.fmt.encode(column, scale, zero_point)
            codes.copy_(rounded)
            torch.sub(weight, self.fmt.decode(rounded, scale, zero_point), out=error)
            left, reach = _between(near, index + 1, last - first), inside[..., index, index + 1 :]
            if near.ndim == 3:
                left.addcmul_(reach.unsqueeze(-1), error.unsqueeze(-2))
            elif len(left):
                left.addr_(reach, error)


def _between(columns: Tensor, start: int, stop: int) -> Tensor:
    """The columns [start, stop) of [..., in, out]."""
    return columns[..., start:stop, :]


def has_program(device: torch.device) -> bool:
    """Whether a Triton program rounds columns on the device: not where its launch has failed."""
    return is_nvidia(device) and has_triton() and reason(PROGRAM, device) is None


def launched(parts: tuple[Tensor, ...], inside: Tensor, fmt: IntFormat) -> bool:
    """Whether the program of ``gptq_triton.round_columns``, which see, has done it; a failed one is not tried again."""
    from jointquant.quantization.gptq_triton import round_columns

    try:
        round_columns(parts, inside, fmt)
    except Exception as error:
        failed = of_launch(error)
        if failed is None:
            raise
        remember(PROGRAM, inside.device, f"{inside.shape[-1]} columns of {parts[0].shape[-1]} rows", failed)
        return False
    return True


class HessianSum:
    """Σ xᵀx over the inputs of one site, summed in float32; sums of several workers simply add."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.total = torch.zeros(size, size, dtype=torch.float32, device=device)
        self.num_tokens = 0

    def update(self, x: Tensor) -> None:
        """Add the tokens of x: [..., in]."""
        channels = x.reshape(-1, x.shape[-1]).float().t()
        if multiplied_by_onednn(channels, channels):
            channels = channels.contiguous()  # once, not once a band
        for start, band in bands_of(self.total):
            add_to_band(band, channels[start:], start)
        self.num_tokens += channels.shape[1]

    def release(self) -> None:
        """Let go of the sum, and of what it has seen."""
        self.total, self.num_tokens = self.total.new_zeros(self.total.shape[:0]), 0

    def hessian(self) -> Tensor:
        """[in, in], not a copy. Raises ValueError when no token was seen."""
        if not self.num_tokens:
            raise ValueError("a Hessian needs at least one token, got none")
        for start, band in bands_of(self.total):
            stop = start + len(band)
            self.total[stop:, start:stop] = band[:, stop:].t()
        return self.total


def bands_of(total: Tensor) -> list[tuple[int, Tensor]]:
    """The rows of Σ xᵀx [in, in] in bands, as views, each with the number of its first row."""
    size = len(total)
    height = LARGEST_BAND
    if size > LARGEST_BAND:
        height = min(max(1 << (size // BANDS - 1).bit_length(), SMALLEST_BAND), LARGEST_BAND)  # a power of two
    return list(zip(range(0, size, height), total.split(height), strict=True))


def add_to_band(band: Tensor, channels: Tensor, start: int) -> None:
    """Add to the rows of Σ xᵀx from ``start`` on, ``band`` [rows, in], those of more tokens.

    Args:
        band: its columns before ``start`` stay as they are.
        channels: [in − start, tokens], those of the tokens from ``start`` on.
        start: the first row, and the first column that is summed.
    """
    add_product(band[:, start:], channels[: len(band)], channels)
