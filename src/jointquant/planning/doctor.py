"""What this machine can do: versions, extras, and each device's dtypes, linear algebra, precision, speed and memory."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from jointquant._version import __version__
from jointquant.backend.devices import DTYPES, all_devices, device_name, memory, resolve_device
from jointquant.backend.operations import HOST, OPERATIONS, REFUSALS, product_error, runs_on, works
from jointquant.errors import InputError
from jointquant.planning.speed import products_speed
from jointquant.rotations.hadamard import HadamardTransform
from jointquant.runtime.kernels.capabilities import exact_weight_bits, has_packed_int4, has_vnni
from jointquant.runtime.kernels.compiler import missing

PACKAGES = ("torch", "transformers", "safetensors", "compressed-tensors", "datasets")
EXTRAS = {
    "lm-eval": "eval --tasks",
    "modelscope": "--hub modelscope",
    "triton": "GPU kernels",
    "torch-npu": "Ascend NPUs",
}
"""Packages that some features need: what they are for."""

HADAMARD_SIZE = 11008

Findings = dict[str, Any]


def examine() -> Findings:
    """Findings as plain data, each measured now; no network is asked."""
    findings: Findings = {
        "jointquant": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "packages": {name: _installed(name) for name in PACKAGES},
        "extras": {name: _installed(name) for name in EXTRAS},
    }
    findings["integer_products"] = {
        "packed_int4": has_packed_int4(HOST),
        "int8_weight_bits": exact_weight_bits(HOST),
        "vnni": has_vnni(),
        "packed_rows_missing": missing(),
    }
    try:
        devices, findings["device"] = all_devices(), str(resolve_device("auto"))
    except InputError as error:
        devices, findings["problem"] = [HOST], str(error)
    findings["devices"] = {str(device): examine_device(device) for device in devices}
    return findings


def examine_device(device: torch.device) -> Findings:
    """What one device can do.

    Returns:
        ``name``; ``memory_bytes`` and ``memory_free_bytes`` (None where unknown); ``dtypes``: whether a product works;
        ``operations``: whether each works there, and where we run it; ``hadamard_error``: the largest error of a
        transform and its inverse in float32; ``gflops``: speed of a product by dtype.
    """
    free, total = memory(device) or (None, None)
    dtypes = {name: works(partial(product_error, device, dtype)) for name, dtype in DTYPES.items()}
    operations = {
        name: {"works": works(partial(trial, device)), "runs_on": str(runs_on(device, name))}
        for name, trial in OPERATIONS.items()
    }
    return {
        "name": device_name(device),
        "memory_bytes": total,
        "memory_free_bytes": free,
        "dtypes": dtypes,
        "operations": operations,
        "hadamard_error": _hadamard_error(device),
        "gflops": {x: products_speed(device, DTYPES[x]) / 1e9 for x in ("float32", "bfloat16") if dtypes[x]},
    }


def in_words(findings: Findings) -> Iterator[tuple[str, str]]:
    """The rows of a table for people."""
    for key in ("jointquant", "python", "platform"):
        yield key, findings[key]
    yield "cores", f"{findings['cores']} ({findings['threads']} threads used by torch)"
    yield from findings["packages"].items()
    for name, found in findings["extras"].items():
        yield f"{name} (for {EXTRAS[name]})", found or "not installed"
    yield "integer products on the cpu", _integers_in_words(findings["integer_products"])
    if "problem" in findings:
        yield "problem", findings["problem"]
    else:
        yield "device auto", findings["device"]
    for device, found in findings["devices"].items():
        yield from _device_in_words(device, found)


def _integers_in_words(found: Findings) -> str:
    bits = found["int8_weight_bits"]
    product = f"8-bit activations with weights of up to {bits} bits" if bits else "none of 8-bit integers"
    packed = "packed 4-bit weights in bfloat16" if found["packed_int4"] else "none of packed 4-bit weights"
    why = found["packed_rows_missing"]
    in_place = "weights of 4 and 8 bits read in place (packed_rows)" if why is None else f"packed_rows {why}"
    return f"{product}, {packed}" + (", VNNI" if found["vnni"] else "") + f"; {in_place}"


def _device_in_words(device: str, found: Findings) -> Iterator[tuple[str, str]]:
    yield device, found["name"]
    if found["memory_bytes"] is not None:
        free, total = found["memory_free_bytes"] / 2**30, found["memory_bytes"] / 2**30
        yield f"{device} memory", f"{total:.1f} GiB, {free:.1f} GiB free"
    yield f"{device} dtypes", ", ".join(f"{name} {'works' if ok else 'FAILS'}" for name, ok in found["dtypes"].items())
    for name, operation in found["operations"].items():
        works = "works" if operation["works"] else "fails"
        yield f"{device} {name}", f"{works} here; runs on {operation['runs_on']}"
    error = found["hadamard_error"]
    what = "fails" if error is None else f"largest error {error:.1e}"
    yield f"{device} Hadamard round trip", f"{what} (float32, size {HADAMARD_SIZE})"
    yield f"{device} speed", ", ".join(f"{name} {in_gflops(speed)}" for name, speed in found["gflops"].items())


def in_gflops(speed: float) -> str:
    """A speed in GFLOP/s with two digits at least, however slow it is."""
    return f"{speed:.0f} GFLOP/s" if speed >= 10 else f"{speed:.2g} GFLOP/s"


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _hadamard_error(device: torch.device) -> float | None:
    """Largest error of a transform and its inverse on the device; None where it does not run."""
    x = torch.randn(8, HADAMARD_SIZE, generator=torch.Generator().manual_seed(0)).to(device)
    transform = HadamardTransform.of_size(HADAMARD_SIZE)
    try:
        return float((transform.apply(transform.apply(x), inverse=True) - x).abs().max().item())
    except REFUSALS:
        return None
