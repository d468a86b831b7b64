"""GPTQ: round column by column, moving each column's error onto the columns not yet rounded.

Source: Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
algorithm 1 (Cholesky form, blocked updates); activation order from the authors' reference code. Rows are independent
of each other, so linears that share an input are stacked along the output dimension and share one factor.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from jointquant.devices import elements_at_once, linalg_device
from jointquant.quantization.integer import to_groups
from jointquant.quantization.weights import ClipMethod, QuantizedWeight, WeightFormat, weight_parameters

MAX_DAMPING_TRIES = 8


@dataclass(frozen=True)
class Factor:
    """What rounding needs of a Hessian, shared by all linears that read the same input.

    Attributes:
        upper: [in, in] upper Cholesky factor of the inverse damped Hessian, columns in ``order``.
        order: [in] the order in which columns are rounded.
        damping: the share of the mean diagonal that was added for the factorisation to succeed.
        dead: [in] bool, columns whose input was always zero (rounded as zero).
    """

    upper: Tensor
    order: Tensor
    damping: float
    dead: Tensor


def factorize(hessian: Tensor, damping: float = 0.01, activation_order: bool = True) -> Factor:
    """Factor of H = XᵀX ([in, in]), or of a multiple of it: what is rounded with it does not depend on a factor.

    Damping grows tenfold while the Cholesky factorisation fails. The Hessian is read, not changed.

    Raises:
        ValueError: H is not finite, or not factorisable even when heavily damped.
    """
    diagonal = hessian.diagonal().clone()
    if not torch.isfinite(hessian.sum()):  # one number, where a mask would be a quarter of the matrix
        raise ValueError("the Hessian must be finite, got NaN or infinity: the calibration activations overflowed")
    dead = diagonal == 0
    diagonal[dead] = 1.0
    order = (
        torch.argsort(diagonal, descending=True, stable=True)
        if activation_order
        else torch.arange(len(diagonal), device=hessian.device)
    )
    diagonal = diagonal[order]
    work = hessian[order.unsqueeze(1), order]
    for _ in range(MAX_DAMPING_TRIES):
        work.diagonal().copy_(diagonal + damping * diagonal.mean())
        upper = _inverse_factor(work)
        if upper is not None:
            return Factor(upper.to(hessian.device), order, damping, dead)
        damping *= 10
    raise ValueError(f"the Hessian is not positive definite even with damping {damping:g}")


def _inverse_factor(matrix: Tensor) -> Tensor | None:
    """U with UᵀU = matrix⁻¹, upper triangular [n, n]; None where rounding leaves the matrix not positive definite.

    At most two further matrices are held at a time.
    """
    lower, failed = torch.linalg.cholesky_ex(matrix.to(linalg_device(matrix.device, "cholesky")))
    if failed:
        return None
    inverse = torch.cholesky_inverse(lower)
    del lower
    upper, failed = torch.linalg.cholesky_ex(inverse, upper=True)
    return upper if not failed and torch.isfinite(upper.sum()) else None


def gptq(
    weight: Tensor,
    factor: Factor,
    fmt: WeightFormat,
    clip: ClipMethod = "mse",
    scale_dtype: torch.dtype = torch.float32,
    block_size: int = 128,
) -> QuantizedWeight:
    """Round ``weight`` [out, in] so that ‖X(W − Ŵ)ᵀ‖ stays small, X the inputs behind the factor.

    Scales are chosen once, on the weights before any update, so groups stay contiguous whatever the order. Of a large
    matrix some rows are rounded at a time.
    """
    rows = max(1, elements_at_once(weight.device) // weight.shape[1])
    parts = [_gptq_rows(part, factor, fmt, clip, scale_dtype, block_size) for part in weight.split(rows)]
    return QuantizedWeight.joined(parts)


def _gptq_rows(
    weight: Tensor, factor: Factor, fmt: WeightFormat, clip: ClipMethod, scale_dtype: torch.dtype, block_size: int
) -> QuantizedWeight:
    work = weight.float().clone()
    work[:, factor.dead] = 0
    scale, zero_point = weight_parameters(to_groups(work, fmt), fmt, clip, scale_dtype)
    scale, zero_point = scale.squeeze(-1), zero_point.squeeze(-1)  # [out, groups]
    group_size = work.shape[1] // scale.shape[1]
    work = work[:, factor.order]
    group_of = factor.order // group_size
    codes = torch.empty_like(work)
    for start in range(0, work.shape[1], block_size):
        stop = min(start + block_size, work.shape[1])
        columns = slice(start, stop)
        of_block = group_of[columns]
        codes[:, columns], errors = _round_block(
            work[:, columns], factor.upper[columns, columns], scale[:, of_block], zero_point[:, of_block], fmt
        )
        work[:, stop:] -= errors @ factor.upper[columns, stop:]
    restored = torch.empty_like(codes)
    restored[:, factor.order] = codes
    return QuantizedWeight(restored.to(torch.int8), scale.to(scale_dtype), zero_point.to(torch.int8), fmt)


def _round_block(
    work: Tensor, upper: Tensor, scale: Tensor, zero_point: Tensor, fmt: WeightFormat
) -> tuple[Tensor, Tensor]:
    """Codes and scaled errors of one block of columns, each [out, block]; all arguments are that block's."""
    work = work.t().contiguous()  # rows are columns of W: contiguous updates
    scale, zero_point = scale.t().contiguous(), zero_point.t().contiguous()
    codes, errors = torch.empty_like(work), torch.empty_like(work)
    pivots = upper.diagonal().tolist()
    for column, pivot in enumerate(pivots):
        q = fmt.encode(work[column], scale[column], zero_point[column])
        error = (work[column] - fmt.decode(q, scale[column], zero_point[column])) / pivot
        codes[column], errors[column] = q, error
        work[column + 1 :].addr_(upper[column, column + 1 :], error, alpha=-1)
    return codes.t(), errors.t()


class HessianSum:
    """H = (2/n) Σ xᵀx over the inputs of one site, summed in float32; sums of several workers simply add."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.total = torch.zeros(size, size, dtype=torch.float32, device=device)
        self.num_tokens = 0

    def update(self, x: Tensor) -> None:
        """Add the tokens of x: [..., in]."""
        rows = x.reshape(-1, x.shape[-1]).float()
        self.total.addmm_(rows.t(), rows)
        self.num_tokens += rows.shape[0]

    def hessian(self) -> Tensor:
        """[in, in]. Raises ValueError when no token was seen."""
        return self.unscaled() * (2.0 / self.num_tokens)

    def unscaled(self) -> Tensor:
        """Σ xᵀx, [in, in], not a copy. Raises ValueError when no token was seen."""
        if not self.num_tokens:
            raise ValueError("a Hessian needs at least one token, got none")
        return self.total
