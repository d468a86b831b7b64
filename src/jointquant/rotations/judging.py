"""Whether a training has lowered its objective: the end is compared with the start on tokens that stay the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from jointquant.backend.operations import double
from jointquant.rotations.optimizers import Learned
from jointquant.rotations.orthogonal import orthogonal_factor
from jointquant.rotations.undone import risen, undone

FEWEST_JUDGED = 512
"""Tokens that a training is judged on at least, where its sample has them: batches may be much smaller."""

Judge = Callable[[Tensor], Tensor]
"""Rotations [..., n, n] → their objective [...], on the same tokens each time."""


@torch.no_grad()
def no_worse(learned: Learned, start: Tensor, judge: Judge) -> Learned:
    """What was learned, or where it started, matrix by matrix: whichever the objective is lower at.

    Args:
        learned: by an optimiser.
        start: [..., n, n] in the dtype and on the device of the training.
        judge: the objective, of the whole stack or of each matrix.
    """
    before, after = judge(start), judge(learned.rotation.to(start))
    found = undone(before, after)
    if not found.trainings:
        return replace(learned, undone=found)
    kept = orthogonal_factor(double(start.detach())).cpu()  # as an optimiser gives it back that takes no step
    rotation = torch.where(risen(before, after).cpu()[..., None, None], kept, learned.rotation)
    return replace(learned, rotation=rotation, undone=found)
