"""The only place that knows accelerators by name."""

from __future__ import annotations

import torch

from jointquant.errors import InputError

# Operations a backend lacks; they run on the CPU instead.
MISSING: dict[str, frozenset[str]] = {
    "mps": frozenset({"float64", "qr", "cholesky", "solve"}),
    "npu": frozenset({"float64", "qr", "cholesky", "solve"}),
}


def resolve_device(name: str = "auto") -> torch.device:
    """The device called ``name``; "auto" is the accelerator if there is one, else the CPU.

    Raises:
        InputError: the name is unknown, or no such device is at hand.
    """
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if name == "auto":
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"unknown device {name!r}: expected auto, cpu, or an accelerator such as cuda:0") from None
    if device.type != "cpu" and (accelerator is None or accelerator.type != device.type):
        found = accelerator.type if accelerator else "no accelerator"
        raise InputError(f"device {name!r} is not available: this machine has {found} and cpu")
    return device


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def resolve_dtype(name: str, device: torch.device, stored: torch.dtype) -> torch.dtype:
    """The dtype to compute in; "auto" is float32 on the CPU and the checkpoint's own on accelerators.

    Raises:
        InputError: an unknown dtype.
    """
    if name == "auto":
        return torch.float32 if device.type == "cpu" else stored
    if name not in DTYPES:
        raise InputError(f"unknown dtype {name!r}: expected auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def supports(device: torch.device, operation: str) -> bool:
    """Whether ``operation`` ("float64", "qr", "cholesky", "solve") runs on the device itself."""
    return operation not in MISSING.get(device.type, frozenset())


def linalg_device(device: torch.device, operation: str) -> torch.device:
    """Where ``operation`` runs for tensors of ``device``."""
    return device if supports(device, operation) else torch.device("cpu")
