"""Bases of one attention head in which keys survive quantization better; queries take the inverse, so scores stay.

Keys become kA and queries qA⁻ᵀ, so qkᵀ is unchanged for every invertible A. What A is good for depends on both: an
error in a key's channel counts by how large queries are there, so the best grids see keys whose channels matter alike.

Sources: Lin et al., "QServe" (arXiv 2405.04532, section 4.2, SmoothAttention), for the diagonal form; the full form is
the geometric mean of two positive matrices (Bhatia, "Positive Definite Matrices", chapter 4).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from jointquant.backend.operations import double, runs_on

DAMPING = 1e-4
"""Share of the mean variance that is added to each, for channels in which nothing moves."""

Balancing = Callable[[Tensor, Tensor], Tensor]
"""Second moments of queries and of keys, both [..., n, n] → A [..., n, n] float64, symmetric and positive."""


def diagonal_balancing(queries: Tensor, keys: Tensor) -> Tensor:
    """A = diag(√(rms qⱼ / rms kⱼ)): channel by channel, queries and keys leave with the same root mean square."""
    variances = [_damped(moments).diagonal(dim1=-2, dim2=-1) for moments in (queries, keys)]
    return torch.diag_embed((variances[0] / variances[1]).pow(0.25))


def full_balancing(queries: Tensor, keys: Tensor) -> Tensor:
    """A with A K A = A⁻¹ Q A⁻¹: queries and keys leave with the same second moments.

    A² = K^(−1/2) (K^(1/2) Q K^(1/2))^(1/2) K^(−1/2), the geometric mean of Q and K⁻¹.
    """
    queries, keys = _damped(queries), _damped(keys)
    root, inverse_root = power(keys, 0.5), power(keys, -0.5)
    return power(inverse_root @ power(root @ queries @ root, 0.5) @ inverse_root, 0.5)


def power(matrix: Tensor, exponent: float) -> Tensor:
    """A real power of symmetric positive matrices [..., n, n]."""
    values, vectors = torch.linalg.eigh(matrix.to(runs_on(matrix.device, "eigh")))
    values = values.clamp_min(torch.finfo(values.dtype).tiny)
    return (vectors @ torch.diag_embed(values**exponent) @ vectors.mT).to(matrix.device)


def _damped(moments: Tensor) -> Tensor:
    moments = double(moments)
    mean = moments.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    mean = torch.where(mean > 0, mean, torch.ones_like(mean))
    return moments + DAMPING * mean * torch.eye(moments.shape[-1], dtype=moments.dtype, device=moments.device)


BALANCINGS: dict[str, Balancing] = {"diagonal": diagonal_balancing, "full": full_balancing}
