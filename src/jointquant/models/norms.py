"""What a family's norms compute, and what is left of them once fused: one type a kind.

Both kinds end as an RMSNorm of weight 1, x ↦ x / RMS(x), with which every rotation of the residual stream commutes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:  # the table of families is read without torch, which takes seconds to import
    from torch import Tensor, nn


@dataclass(frozen=True)
class RMSNorm:
    """y = x / RMS(x) · (offset + γ).

    Attributes:
        offset: 0 where the weight is the gain itself, 1 where it is stored as a difference from 1 (Gemma).
    """

    offset: float = 0.0
    subtracts_mean: ClassVar[bool] = False

    def gain(self, norm: nn.Module) -> Tensor:
        """What the norm's readers see their input scaled by: [hidden], float64."""
        return self.gain_of(_parameter(norm, "weight"))

    def gain_of(self, weight: Tensor) -> Tensor:
        """The same, of a norm that has this weight [hidden]."""
        return self.offset + _double(weight)

    def shift(self, norm: nn.Module) -> None:
        """What the norm adds at last: nothing."""

    def weight_of(self, gain: Tensor) -> Tensor:
        """The weight that a norm of this gain has: [hidden], in the gain's dtype."""
        return gain - self.offset

    def fused(self, norm: nn.Module) -> nn.Module:
        """The norm itself with a gain of 1."""
        import torch

        weight = torch.full_like(_parameter(norm, "weight"), 1 - self.offset)
        norm.weight = torch.nn.Parameter(weight, requires_grad=False)
        return norm


@dataclass(frozen=True)
class LayerNorm:
    """y = (x − mean x) / σ(x) · γ + β, the weight and the bias each optional.

    Its mean runs over the coordinates of the basis in which the model was trained, so it has to go before the basis
    is rotated: writers to the residual stream are mean-centred (``subtracts_mean``), and an RMSNorm remains.
    """

    subtracts_mean: ClassVar[bool] = True

    def gain(self, norm: nn.Module) -> Tensor | None:
        """What the norm's readers see their input scaled by: [hidden], float64; None where it has no weight."""
        return None if norm.weight is None else self.gain_of(_parameter(norm, "weight"))

    def gain_of(self, weight: Tensor) -> Tensor:
        """The same, of a norm that has this weight [hidden]."""
        return _double(weight)

    def shift(self, norm: nn.Module) -> Tensor | None:
        """What the norm adds at last: [hidden], float64; None where it has no bias."""
        return None if getattr(norm, "bias", None) is None else _double(_parameter(norm, "bias"))

    def weight_of(self, gain: Tensor) -> Tensor:
        """The weight that a norm of this gain has: the gain."""
        return gain

    def fused(self, norm: nn.Module) -> nn.Module:
        """An RMSNorm with the same eps, its weight 1 (none where the norm had none)."""
        from torch import nn

        assert isinstance(norm, nn.LayerNorm) or norm.weight is not None
        like = {} if norm.weight is None else {"device": norm.weight.device, "dtype": norm.weight.dtype}
        shape = norm.normalized_shape if isinstance(norm, nn.LayerNorm) else _parameter(norm, "weight").shape
        eps: Any = (
            norm.eps if isinstance(norm, nn.LayerNorm) else norm.variance_epsilon
        )  # Cohere has a class of its own
        new = nn.RMSNorm(shape, eps, norm.weight is not None, **like)
        return new.train(norm.training).requires_grad_(False)


NormKind = RMSNorm | LayerNorm


def _parameter(norm: nn.Module, name: str) -> Tensor:
    parameter: Tensor = getattr(norm, name)
    return parameter


def _double(values: Tensor) -> Tensor:
    """[hidden], float64."""
    from jointquant.backend.operations import double

    return double(values)
