"""Merging rotations into weights, in float64: pure functions of a weight [out, in] and a rotation, x → xR.

A linear computes y = x Wᵀ + b. If its input arrives as xR it needs W R; if its output shall leave as yR it needs
Rᵀ W and b R.
"""

from __future__ import annotations

import torch
from torch import Tensor

from jointquant.backend.operations import double, runs_on
from jointquant.rotations.blocks import rotate_blocks
from jointquant.rotations.hadamard import HadamardTransform


def scale_input(weight: Tensor, scale: Tensor) -> Tensor:
    """W diag(scale): weight [out, in], scale [in] → float64 [out, in]."""
    work = double(weight)
    return work * scale.to(work)


def divide_output(values: Tensor, scale: Tensor) -> Tensor:
    """diag(1 / scale) W or b: a weight [out, in] or a bias [out], scale [out] → float64 of the same shape."""
    work = double(values)
    return work / scale.to(work).reshape(-1, *[1] * (work.ndim - 1))


def shift_input(weight: Tensor, bias: Tensor, shift: Tensor) -> Tensor:
    """b + W shift, for an input that arrives without its shift: weight [out, in] → float64 [out]."""
    work = double(weight)
    return bias.to(work) + work @ shift.to(work)


def centre(values: Tensor, dim: int) -> Tensor:
    """Values less their mean along a dimension, in float64: the last of an embedding's rows, the first of a writer's
    weight [out, in] and bias [out].
    """
    work = double(values)
    return work - work.mean(dim, keepdim=True)


def rotate_rows(rows: Tensor, rotation: Tensor) -> Tensor:
    """Each row as a vector, times R: a weight [out, n] whose input arrives rotated, an embedding's rows, a bias [n]."""
    work = double(rows)
    return work @ rotation.to(work)


def rotate_output(weight: Tensor, rotation: Tensor) -> Tensor:
    """Rᵀ W: weight [out, in], rotation [out, out] → float64 [out, in]."""
    work = double(weight)
    return rotation.to(work).T @ work


def transform_input(weight: Tensor, transform: HadamardTransform) -> Tensor:
    """W H for an input that arrives as xH: weight [out, in] → float64 [out, in], without a dense H."""
    return transform.apply(double(weight))


def transform_input_blocks(weight: Tensor, matrices: Tensor) -> Tensor:
    """W A⁻ᵀ for an input that arrives as xA, A of blocks: weight [out, in], [blocks, b, b] → float64 [out, in].

    The matrices need not be orthogonal: for rotations that were rounded, this is exact too.
    """
    work = double(weight)
    inverse = torch.linalg.inv(double(matrices).to(runs_on(weight.device, "solve"))).mT
    return rotate_blocks(work, inverse.to(work))


def rotate_head_outputs(weight: Tensor, rotations: Tensor) -> Tensor:
    """v_proj: the output of each KV head leaves rotated.

    weight [kv_heads · head_dim, in], rotations [kv_heads, head_dim, head_dim] → float64 of the weight's shape.
    """
    work = double(weight)
    heads = work.unflatten(0, rotations.shape[:2])  # [kv_heads, head_dim, in]
    return (rotations.to(work).transpose(1, 2) @ heads).flatten(0, 1)


def rotate_head_bias(bias: Tensor, rotations: Tensor) -> Tensor:
    """v_proj's bias [kv_heads · head_dim] → float64 of the same shape."""
    work = double(bias)
    heads = work.unflatten(0, rotations.shape[:2]).unsqueeze(1)  # [kv_heads, 1, head_dim]
    return (heads @ rotations.to(work)).flatten()


def rotate_head_inputs(weight: Tensor, rotations: Tensor) -> Tensor:
    """o_proj: each query head arrives rotated by its KV head's rotation.

    weight [out, heads · head_dim], rotations [kv_heads, head_dim, head_dim] → float64 of the weight's shape.
    """
    work = double(weight)
    kv_heads, head_dim = rotations.shape[:2]
    heads = work.unflatten(1, (kv_heads, -1, head_dim))  # [out, kv_heads, group, head_dim]
    return torch.einsum("okgd,kde->okge", heads, rotations.to(work)).flatten(1)
