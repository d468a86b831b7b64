"""Numbers that leave the range of a dtype: which tensor is to blame, and which dtype holds it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from jointquant.errors import OverflowedError, require
from jointquant.models.layer import Place
from jointquant.models.stream import ModelStream

CLOSE = 1 / 8
"""The part of a tensor's largest value by which that may change where it is stored in another dtype."""


@contextmanager
def overflow_explained(stream: ModelStream, place: Place) -> Iterator[None]:
    """While open, an overflow is told with the largest tensor of the model, which is read once more for that.

    Raises:
        OverflowedError: what overflowed, the tensor, and what would help.
    """
    try:
        yield
    except OverflowedError as error:
        source, names = stream.source, stream.skeleton.state_dict()
        peaks = {name: source.load(name).abs().max().item() for name in source.shapes() if name in names}
        name = max(peaks, key=lambda each: peaks[each])
        wider = "float32" if place.dtype in (torch.float16, torch.bfloat16) else "float64"
        kept = str(place.dtype).removeprefix("torch.")
        raise OverflowedError(
            f"{error}; computed in {kept}, and the largest weights, up to {peaks[name]:.3g}, are in tensor {name}: "
            f'expected `dtype="{wider}"`, or a model whose tensors are scaled alike'
        ) from None


def narrowed(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor in another dtype.

    Raises:
        InputError: its values are beyond the dtype's, or its largest vanish in it; names the tensor.
    """
    stored = tensor.to(dtype)
    if not tensor.numel() or torch.finfo(dtype).max >= torch.finfo(tensor.dtype).max:
        return stored
    peak, kept = tensor.abs().amax().item(), stored.abs().amax().item()
    said = f"tensor {name} has values of up to {peak:.3g}, which {str(dtype).removeprefix('torch.')}"
    fitting = "expected `dtype` bfloat16 or float32"
    require(
        bool(torch.isfinite(stored).all()),
        f"{said} does not hold (its largest is {torch.finfo(dtype).max:.5g}): {fitting}",
    )
    require(abs(kept - peak) <= CLOSE * peak, f"{said} makes {kept:.3g}: {fitting}")
    return stored
