"""Orthogonal and skew-symmetric matrices [..., n, n]: how far they turn, and the way back to what is orthogonal."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from jointquant.backend.operations import HOST, runs_on
from jointquant.errors import OverflowedError

LOOSELY, CLOSELY, EXACTLY = 0.1, 1e-3, 1e-10
"""‖RᵀR − I‖ that is left between steps, before the change to float64, and of what is returned."""

RETURNS = 2
"""Iterations of a return that nobody waits for: steps between two leave less than one takes away."""

STRAYED = 10.0
"""‖RᵀR − I‖ above which Newton–Schulz iterations that do not lower it are given up."""

TINY = 1e-30
"""Keeps a division by a length from failing where the length is 0."""


def tangent(rotation: Tensor, gradient: Tensor) -> Tensor:
    """The skew-symmetric part of RᵀG: where the loss rises fastest among all ways to turn; all [..., n, n]."""
    product = rotation.mT @ gradient
    return (product - product.mT) / 2


def mean_angle(skew: Tensor) -> Tensor:
    """The root mean square over planes of the angles by which exp(A), A [..., n, n] skew-symmetric, turns them."""
    return torch.linalg.matrix_norm(skew, keepdim=True) / math.sqrt(skew.shape[-1])


def fastest_plane(skew: Tensor, probe: Tensor) -> tuple[Tensor, Tensor]:
    """The largest angle by which exp(A), A [..., n, n], turns a plane, as [..., 1, 1], and the probe for the next A.

    One step of the power iteration: a vector grows by its plane's angle, so the plane that turns fastest comes out.

    Args:
        skew: A.
        probe: [n, k] at first, then [..., n, k] of the step before, whose A was much the same.
    """
    image = (skew @ probe.to(skew)).to(probe)
    length = torch.linalg.vector_norm(image, dim=-2, keepdim=True)  # [..., 1, k]
    angle = (length / torch.linalg.vector_norm(probe, dim=-2, keepdim=True)).amax(-1, keepdim=True)
    return angle.clamp_min(TINY), torch.where(length > 0, image / length.clamp_min(TINY), probe)


def orthogonalized(matrix: Tensor, tolerance: float, low: torch.dtype | None = None) -> Tensor:
    """The orthogonal matrix [..., n, n] nearest to one that is nearly orthogonal, by Newton–Schulz iterations.

    R ← R·(3I − RᵀR)/2, until the Frobenius norm of RᵀR − I is below the tolerance or stops falling. Where it does not
    fall from far out, a singular value was beyond √3, out of the iteration's reach: then a QR factorisation does it.

    Args:
        matrix: R.
        tolerance: of each matrix of a stack.
        low: the dtype in which factors enter products; None: their own.

    Raises:
        OverflowedError: the matrix is not finite.
    """
    last = math.inf
    while True:
        factor = matrix.to(low or matrix.dtype)
        excess = factor.mT @ factor
        excess.diagonal(dim1=-2, dim2=-1).sub_(1)
        distance = torch.linalg.matrix_norm(excess, dtype=matrix.dtype).max().item()
        if not math.isfinite(distance):
            raise OverflowedError("a rotation is not finite any more: the samples or the objective overflowed")
        if distance > max(last, STRAYED):
            return orthogonal_factor(matrix)
        if distance <= tolerance or distance >= last:
            return matrix
        matrix = matrix.sub(factor @ excess, alpha=0.5)
        if distance**2 <= tolerance:  # of E, a step leaves no more than (3/4)‖E‖² + (1/4)‖E‖³
            return matrix
        last = distance


def brought_back(matrix: Tensor, low: torch.dtype | None = None) -> Tensor:
    """What steps have moved [..., n, n], within ``LOOSELY`` of the orthogonal matrices, or nearer to them.

    On the host as ``orthogonalized``. On an accelerator the same iterations, ``RETURNS`` of them: no one there asks how
    far the matrix is, for the host would wait for all steps before. What has strayed beyond their reach is shortened
    into it, by a bound of its largest singular value: the root of the largest sum of |RᵀR| along a row.
    """
    if matrix.device == HOST:
        return orthogonalized(matrix, LOOSELY, low)
    for _ in range(RETURNS):
        factor = matrix.to(low or matrix.dtype)
        excess = factor.mT @ factor
        bound = excess.abs().sum(-1, dtype=matrix.dtype).amax(-1)[..., None, None].rsqrt()
        excess.diagonal(dim1=-2, dim2=-1).sub_(1)
        distance = torch.linalg.matrix_norm(excess, dtype=matrix.dtype, keepdim=True)
        nearer = matrix - (factor @ excess).to(matrix) * (0.5 * (distance > LOOSELY).to(matrix))
        matrix = torch.where(distance > STRAYED, matrix * bound, nearer)
    return matrix


def cayley_transform(skew: Tensor) -> Tensor:
    """(I + A/2)⁻¹(I − A/2) for a skew-symmetric A [..., n, n]: orthogonal, and exp(−A) to second order."""
    half = (skew / 2).to(runs_on(skew.device, "solve"))
    identity = torch.eye(half.shape[-1], dtype=half.dtype, device=half.device)
    turn, _ = torch.linalg.solve_ex(identity + half, identity - half)  # never singular: nobody waits to see
    return turn.to(skew.device)


def orthogonal_factor(matrix: Tensor) -> Tensor:
    """Q of the QR factorisation [..., n, n] whose triangular factor has a positive diagonal, hence unique."""
    q, r = torch.linalg.qr(matrix.to(runs_on(matrix.device, "qr")))
    signs = torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(q.dtype)
    return (q * signs.unsqueeze(-2)).to(matrix.device)


def turned(before: Tensor, after: Tensor) -> Tensor:
    """The angle between two rotations [..., n, n], in radians (see :class:`Learned`), averaged over the stack."""
    return angle_of(torch.linalg.matrix_norm(after - before), before.shape[-1])


def angle_of(distance: Tensor, size: int) -> Tensor:
    """The angle whose chord is a Frobenius distance [...] of rotations of ``size`` rows, averaged over the stack."""
    chord = distance / math.sqrt(size)  # 0 to 2
    return (2 * torch.asin((chord / 2).clamp_max(1))).mean()
