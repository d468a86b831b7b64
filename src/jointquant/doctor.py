"""What this machine can do: versions, devices, and whether the numerics hold here."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version

import torch

from jointquant._version import __version__
from jointquant.devices import resolve_device, supports
from jointquant.rotations.hadamard import HadamardTransform

PACKAGES = ("torch", "transformers", "safetensors", "compressed-tensors", "datasets")


def examine() -> dict[str, str]:
    """Findings in words, each measured now."""
    device = resolve_device("auto")
    findings = {"jointquant": __version__, "python": platform.python_version(), "platform": platform.platform()}
    findings |= {name: version(name) for name in PACKAGES}
    findings["cores"] = f"{os.cpu_count()} ({torch.get_num_threads()} threads used by torch)"
    findings["device"] = str(device)
    for operation in ("float64", "qr", "cholesky"):
        where = "on the device" if supports(device, operation) else "on the CPU"
        findings[operation] = where
    findings["Hadamard round trip"] = f"largest error {_hadamard_error(device):.1e} (float32, size 11008)"
    return findings


def _hadamard_error(device: torch.device) -> float:
    """Largest error of a transform and its inverse on the device."""
    x = torch.randn(8, 11008, generator=torch.Generator().manual_seed(0)).to(device)
    transform = HadamardTransform.of_size(11008)
    return (transform.apply(transform.apply(x), inverse=True) - x).abs().max().item()
