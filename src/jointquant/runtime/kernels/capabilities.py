"""What this machine and this torch can compute with integers."""

from __future__ import annotations

import platform
from functools import cache

import torch

from jointquant.backend.devices import X86


def _has_operator(namespace: str, name: str) -> bool:
    return hasattr(getattr(torch.ops, namespace), name)


@cache
def has_packed_int4(device: torch.device) -> bool:
    """Whether torch has its int4 product for bfloat16 here."""
    names = ("_weight_int4pack_mm_for_cpu", "_convert_weight_to_int4pack_for_cpu")
    return device.type == "cpu" and platform.machine() in X86 and all(_has_operator("aten", name) for name in names)


@cache
def exact_weight_bits(device: torch.device) -> int:
    """Widest weights whose products with 8-bit integers oneDNN sums exactly here; 0: it is not here at all.

    Without VNNI, pairs of products are summed in int16, which holds them up to 7 bits.
    """
    names = ("qlinear_prepack", "qlinear_pointwise")
    if device.type != "cpu" or platform.machine() not in X86 or not torch.backends.mkldnn.is_available():
        return 0
    if not all(_has_operator("onednn", name) for name in names):
        return 0
    return 8 if has_vnni() else 7


def has_vnni() -> bool:
    """Whether the processor sums products of 8-bit integers in int32 directly."""
    if not hasattr(torch.cpu, "get_capabilities"):  # older than torch 2.10
        return bool(torch.cpu._is_vnni_supported())
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_vnni") or found.get("avx_vnni"))


def multiplies_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 by itself, in vectors or tiles."""
    if not hasattr(torch.cpu, "get_capabilities"):  # older than torch 2.10
        return bool(torch.cpu._is_avx512_bf16_supported())
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_tile"))
