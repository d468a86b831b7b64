"""What a learned rotation minimises: functions of the rotated activations y = xR, each an average over tokens.

A new objective is one function of ``y: [..., tokens, n] → [...]`` (lower is better), one row of ``OBJECTIVES``, and its
name in ``names.py``.
A row is a factory: it receives the quantizer that will read the activations, which most objectives do not need.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from jointquant.backend.devices import sent
from jointquant.quantization.integer import affine_parameters, to_groups
from jointquant.quantization.ranges import DynamicRange
from jointquant.rotations.names import ObjectiveName

Objective = Callable[[Tensor], Tensor]

UNIFORM_HALF_WIDTH = math.sqrt(3.0)
"""U[−b, b] has the root mean square b/√3."""

KL_EDGE = 0.05
"""Width of the soft edge of the uniform density that ``kl`` compares with, as a part of its half width b."""


LEVELS = 15
"""Of a symmetric 4-bit grid: the bins of ``bin_kl``."""

SHARPNESS, LEAST_SHARE = 50.0, 1e-8
"""Of ``bin_kl``: how steep an edge is, in units of 1/RMS; the least share of a bin."""

ObjectiveFactory = Callable[[DynamicRange | None], Objective]


def whip(y: Tensor) -> Tensor:
    """Mean over tokens of Σⱼ exp(−|yⱼ|): pushes small values up, and with the norm fixed, large ones down.

    Source: DartQuant (arXiv 2511.04063), the Whip loss.
    """
    return y.abs().neg().exp().sum(-1).mean(-1)


def swd(y: Tensor) -> Tensor:
    """Squared Wasserstein-2 distance of each channel's values to Uniform[−b, b], b = √3·RMS(y), mean over channels.

    The slices are the channels: sort yⱼ over the T tokens and compare with the uniform quantiles
    b·((2k + 1)/T − 1), k = 0 … T−1; the mean over k of the squared difference, then over j. A rotation leaves the
    RMS over all of y alone, so b is a constant.
    """
    ordered = _sorted_channels(y)
    return (ordered - _half_width(y) * _midpoints(ordered)).square().mean(dim=(-2, -1))


def swd_pooled(y: Tensor) -> Tensor:
    """As ``swd`` with all values in one slice: the y of all tokens and channels are sorted together.

    It does not see whether a channel is wide and another narrow, as long as the values of all are spread evenly.
    """
    ordered = y.flatten(-2).sort(dim=-1).values
    return (ordered - _half_width(y).squeeze(-1) * _midpoints(ordered)).square().mean(-1)


def swd_channel(y: Tensor) -> Tensor:
    """As ``swd`` with a uniform distribution for each channel: bⱼ = √3·RMS(yⱼ), which counts as a constant.

    It does not see either how wide channels are, so variance may gather in a few of them.
    """
    ordered = _sorted_channels(y)
    half_widths = UNIFORM_HALF_WIDTH * _channel_rms(y).mT  # [..., n, 1]
    return (ordered - half_widths * _midpoints(ordered)).square().mean(dim=(-2, -1))


def swd_normal(y: Tensor) -> Tensor:
    """As ``swd`` with the standard normal distribution as the target, for channels in units of their own RMS.

    The RMS of a channel counts as a constant. The target suits a codebook of normal quantiles, such as NF4.
    """
    ordered = _sorted_channels(y / _channel_rms(y))
    quantiles = math.sqrt(2) * torch.erfinv(_midpoints(ordered))
    return (ordered - quantiles).square().mean(dim=(-2, -1))


def bin_kl(y: Tensor) -> Tensor:
    """KL divergence of each channel's shares of ``LEVELS`` bins from equal shares, mean over channels.

    The bins are those of a symmetric 4-bit grid that ends at ±b, b = √3·RMS(y) over all values and without gradient:
    edges halfway between its levels, and a step behind the outermost. Edges are soft, so that there is a gradient: a
    value v lies above an edge e by the part σ(50·(v − e)/RMS(y)). What lies beyond the last edges counts nowhere;
    the shares are divided by their sum.
    """
    half_width = _half_width(y)  # [..., 1, 1]
    between = torch.arange(1, LEVELS) - LEVELS / 2  # in steps of the grid from 0
    beyond = torch.tensor([(LEVELS + 1) / 2])
    steps = sent(torch.cat([-beyond, between, beyond]).to(y.dtype), y.device)
    edges = half_width * (steps * 2 / (LEVELS - 1))  # [..., 1, LEVELS + 1]
    above: Tensor = _SharesAbove.apply(y, edges, SHARPNESS * UNIFORM_HALF_WIDTH / half_width)
    shares = (above[..., :-1] - above[..., 1:]).clamp_min(LEAST_SHARE)
    shares = shares / shares.sum(-1, keepdim=True)
    return (shares * torch.log(shares * LEVELS)).sum(-1).mean(-1)


class _SharesAbove(torch.autograd.Function):
    """Mean over tokens of σ(s·(y − e)) for each edge e: a graph would keep y once for each of them.

    y [..., tokens, n], e [..., 1, edges], s [..., 1, 1] → [..., n, edges]; the gradient is y's alone.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, edges: Tensor, sharpness: Tensor) -> Tensor:
        ctx.save_for_backward(y, edges, sharpness)
        each = [torch.sigmoid(sharpness * (y - edge)).mean(-2) for edge in edges.split(1, dim=-1)]
        return torch.stack(each, dim=-1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        y, edges, sharpness = ctx.saved_tensors
        total = torch.zeros_like(y)
        for edge, slope in zip(edges.split(1, dim=-1), gradient.unbind(-1), strict=True):
            above = torch.sigmoid(sharpness * (y - edge))
            total.addcmul_(above * (1 - above), slope.unsqueeze(-2) * sharpness / y.shape[-2])
        return total, None, None


def token_range(y: Tensor) -> Tensor:
    """Mean over tokens of (maxⱼ yⱼ − minⱼ yⱼ)²: an asymmetric per-token quantizer's error, up to a constant.

    Its step is the range divided by 2^bits − 1, and its error is step²/12 an element when rounding is uniform.
    """
    low, high = y.amin(-1), y.amax(-1)  # aminmax has no derivative before torch 2.13
    return (high - low).square().mean(-1)


def kurtosis(y: Tensor) -> Tensor:
    """Mean over tokens of meanⱼ yⱼ⁴ / (meanⱼ yⱼ²)², the moments about zero over a token's channels.

    1 where all |yⱼ| are equal, 1.8 for uniform, 3 for normal values. A token of zeros counts 0.
    """
    second = y.square().mean(-1)
    return (y.pow(4).mean(-1) / second.square().clamp_min(torch.finfo(y.dtype).tiny)).mean(-1)


def kl(y: Tensor) -> Tensor:
    """KL divergence of each channel's distribution over tokens from a soft-edged Uniform[−b, b], mean over channels.

    KL(p‖q) = −H(p) − E_p[log q] with b = √3·RMS(y) and

    - H by Vasicek's spacings (J. R. Stat. Soc. B 38, 1976): with y₍₀₎ ≤ … ≤ y₍T−1₎ sorted over the tokens, m = √T
      rounded, l = max(k − m, 0) and r = min(k + m, T − 1): H = mean over k of log(T·(y₍r₎ − y₍l₎)/(r − l));
    - q(v) ∝ σ((b − v)/τ)·σ((b + v)/τ), τ = b/20: flat inside, an exponential fall outside, so that values beyond b
      are drawn in (a hard edge would make the divergence infinite). Its integral is 2b/(1 − exp(−2b/τ)).

    Raises:
        ValueError: fewer than two tokens.
    """
    tokens = y.shape[-2]
    if tokens < 2:
        raise ValueError(f"the spacing estimate of an entropy needs at least 2 tokens, got {tokens}")
    half_width = _half_width(y)  # [..., 1, 1]
    tau = KL_EDGE * half_width
    log_mass = torch.log(2 * half_width) - math.log1p(-math.exp(-2 / KL_EDGE))
    log_q = functional.logsigmoid((half_width - y) / tau) + functional.logsigmoid((half_width + y) / tau) - log_mass

    index = torch.arange(tokens, device=y.device)
    spacing = max(1, round(math.sqrt(tokens)))
    width = (index + spacing).clamp_max(tokens - 1) - (index - spacing).clamp_min(0)  # r − l, [tokens]
    ordered = _sorted_channels(y)  # [..., n, tokens]
    ends = [ordered[..., :1], ordered[..., -1:]]
    low, high = (end.expand(*end.shape[:-1], spacing) for end in ends)
    padded = torch.cat([low, ordered, high], dim=-1)
    gaps = padded[..., 2 * spacing :] - padded[..., : -2 * spacing]  # y₍r₎ − y₍l₎
    entropy = torch.log(gaps * (tokens / width.to(y.dtype)) + torch.finfo(y.dtype).eps * half_width)
    return -entropy.mean(dim=(-2, -1)) - log_q.mean(dim=(-2, -1))


@dataclass(frozen=True)
class QuantError:
    """The squared error that a dynamic per-token quantizer makes, mean over tokens and channels.

    Gradients pass the rounding straight through: with s the scale and r the rounding residual in steps, an element
    inside the grid has the error s·r, whose gradient is r·∂s/∂y; one that is clipped has its distance to the edge.
    The zero point counts as a constant.
    """

    quantizer: DynamicRange

    def __call__(self, y: Tensor) -> Tensor:
        """[..., tokens, n] → [...]."""
        fmt, clip_ratio = self.quantizer.fmt, self.quantizer.clip_ratio
        work = to_groups(y, fmt)  # [..., tokens, groups, group_size]
        low, high = work.amin(-1, keepdim=True), work.amax(-1, keepdim=True)
        scale, zero_point = affine_parameters(clip_ratio * low, clip_ratio * high, fmt)
        steps = work / scale + zero_point.detach()
        codes = (steps + (steps.round() - steps).detach()).clamp(fmt.q_min, fmt.q_max)
        error = (codes - zero_point.detach()) * scale - work
        return error.square().mean(dim=(-3, -2, -1))


def _half_width(y: Tensor) -> Tensor:
    """b of the uniform distribution with y's root mean square: [..., tokens, n] → [..., 1, 1], without gradient.

    √3 where all values are 0.
    """
    rms = y.detach().square().mean(dim=(-2, -1), keepdim=True).sqrt()
    return UNIFORM_HALF_WIDTH * torch.where(rms > 0, rms, torch.ones_like(rms))


def _channel_rms(y: Tensor) -> Tensor:
    """The root mean square of each channel over tokens, [..., tokens, n] → [..., 1, n], without gradient; 1 for 0."""
    rms = y.detach().square().mean(-2, keepdim=True).sqrt()
    return torch.where(rms > 0, rms, torch.ones_like(rms))


def _midpoints(ordered: Tensor) -> Tensor:
    """Of T equal parts of [−1, 1], T the size of the last dimension: its uniform quantiles, [T]."""
    count = ordered.shape[-1]
    return (2 * torch.arange(count, device=ordered.device, dtype=ordered.dtype) + 1) / count - 1


def _sorted_channels(y: Tensor) -> Tensor:
    """Each channel's values in ascending order: [..., tokens, n] → [..., n, tokens]."""
    return y.mT.contiguous().sort(dim=-1).values


def _always(objective: Objective) -> ObjectiveFactory:
    return lambda quantizer: objective


def _quant_error(quantizer: DynamicRange | None) -> Objective:
    if quantizer is None:
        raise ValueError("quant_error measures a quantizer: expected activations of less than 16 bits")
    return QuantError(quantizer)


OF_WHOLE_BATCHES: tuple[Objective, ...] = (swd, kl, swd_pooled, swd_channel, swd_normal, bin_kl)
"""Objectives of which the mean over two batches is not that of both: they compare a batch's tokens with each other."""

OBJECTIVES: dict[ObjectiveName, ObjectiveFactory] = {
    "whip": _always(whip),
    "swd": _always(swd),
    "range": _always(token_range),
    "kurtosis": _always(kurtosis),
    "kl": _always(kl),
    "quant_error": _quant_error,
    "swd_pooled": _always(swd_pooled),
    "swd_channel": _always(swd_channel),
    "swd_normal": _always(swd_normal),
    "bin_kl": _always(bin_kl),
}
