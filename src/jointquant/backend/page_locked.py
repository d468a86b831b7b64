"""Memory of the host that a device copies from by itself ("page-locked", or "pinned"): nobody waits until it has."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from jointquant.backend.devices import reads_page_locked

COPIES = 3
"""Of what is read ahead: what is read and what is on its way, each rounded up to a power of two by torch (by less than
half, of a layer's tensors together), which lets go of none before the process ends."""

_refused: list[str] = []


def copies_ahead(device: torch.device) -> int:
    """How many times the host keeps the bytes of what is read ahead for a device."""
    return COPIES if reads_page_locked(device) else 1


def copied(x: Tensor, device: torch.device) -> Tensor:
    """A copy of what a device will be sent: page-locked where the device reads such memory, else an ordinary one.

    Where the machine allows no more of it, that is said once, and copies are ordinary from then on.
    """
    if not reads_page_locked(device) or x.device.type != "cpu" or not x.numel() or _refused:
        return x.clone()
    try:
        return x.pin_memory()
    except RuntimeError as error:
        _refused.append(" ".join(str(error).split())[:200])
        warnings.warn(f"no page-locked memory for {device}, layers are sent from ordinary: {_refused[0]}", stacklevel=2)
        return x.clone()


def placed(x: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """x on a device in a dtype; nobody waits for what is page-locked and stays in its dtype.

    torch keeps such memory until the device has read it, whoever lets go of it.
    """
    ahead = reads_page_locked(device) and x.dtype == dtype and x.device.type == "cpu" and x.is_pinned()
    return x.to(device, dtype, non_blocking=ahead)
