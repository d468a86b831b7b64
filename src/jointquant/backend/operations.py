"""What accelerators lack, and where it runs instead: a table of what is known, and trials of what is not."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor

HOST = torch.device("cpu")

LARGEST_ERROR = 0.1
"""Of a trial: wrong results are far larger, half precisions stay below."""

REFUSALS = (RuntimeError, NotImplementedError, TypeError, AssertionError, ValueError)
"""What torch raises for a thing that a device cannot do."""

LEAST_BFLOAT16 = 128
"""Rows from which products in bfloat16 are worth the conversions."""


def works(trial: Callable[[], Tensor]) -> bool:
    """Whether a trial runs and its error is small."""
    try:
        return bool(trial().abs().max().item() < LARGEST_ERROR)
    except REFUSALS:
        return False


def product_error(device: torch.device, dtype: torch.dtype) -> Tensor:
    """The error of a product [64, 64] on the device: the host's in float32 is the reference."""
    left, right = _square(64), _square(64, 1)
    return (left.to(dtype).to(device) @ right.to(dtype).to(device)).cpu().float() - left @ right


def _square(size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, size, generator=torch.Generator().manual_seed(seed)) / size**0.5


def _qr(device: torch.device) -> Tensor:
    """The error of Q R as A."""
    a = _square(64).to(device)
    q, r = torch.linalg.qr(a)
    return q @ r - a


def _cholesky(device: torch.device) -> Tensor:
    """The error of L Lᵀ as A, L in the place of A as GPTQ computes it."""
    a = _square(64).to(device)
    a = a @ a.mT + torch.eye(64).to(device)
    lower, failed = a.clone().mT, torch.empty((), dtype=torch.int32, device=device)
    torch.linalg.cholesky_ex(lower, out=(lower, failed))
    return lower @ lower.mT - a


def _solve(device: torch.device) -> Tensor:
    """The error of A X as B."""
    a, b = _square(64).to(device) / 4 + torch.eye(64).to(device), _square(64, 1).to(device)
    return a @ torch.linalg.solve(a, b) - b


def _eigh(device: torch.device) -> Tensor:
    """The error of V diag(λ) Vᵀ as A."""
    a = _square(64).to(device)
    a = a + a.mT
    values, vectors = torch.linalg.eigh(a)
    return vectors * values @ vectors.mT - a


def _wrapping(device: torch.device) -> Tensor:
    """Where products of int64 differ from those modulo 2^64, and float32 read as int32 from what they are."""
    numbers, factor = torch.tensor([1, -3, 2**62 + 5]), 2**62 + 2**33 + 1
    products = numbers.to(device) * factor
    bits = _square(4).to(device).contiguous().view(torch.int32)
    return ((products.cpu() != numbers * factor).sum() + (bits.cpu() != _square(4).view(torch.int32)).sum()).float()


def _shift(device: torch.device) -> Tensor:
    """Where shifted integers differ from the host's, in the widths that weights and caches are packed in."""
    differ = torch.zeros((), dtype=torch.int64)
    for dtype in (torch.int8, torch.uint8, torch.int32):
        numbers = torch.arange(-100, 100, 7).to(dtype)
        shifted = ((numbers.to(device) << 4) >> 2).cpu()
        differ += (shifted != (numbers << 4) >> 2).sum()
    words, steps = torch.tensor([[-(2**31)], [2**30 + 77]], dtype=torch.int32), torch.tensor([0, 5, 28])
    steps = steps.to(torch.int32)
    differ += ((words.to(device) >> steps.to(device)).cpu() != words >> steps).sum()
    return differ.float()


OPERATIONS: dict[str, Callable[[torch.device], Tensor]] = {
    "float64": partial(product_error, dtype=torch.float64),
    "qr": _qr,
    "cholesky": _cholesky,
    "solve": _solve,
    "eigh": _eigh,
    "bfloat16": partial(product_error, dtype=torch.bfloat16),
    "wrapping": _wrapping,
    "shift": _shift,
}
"""What is asked of a device besides products and sums in float32, and a trial that gives its error."""

MISSING: dict[str, frozenset[str]] = {
    "mps": frozenset({"float64", "qr", "cholesky", "solve", "eigh"}),
    "npu": frozenset({"float64", "qr", "cholesky", "solve", "eigh"}),
    "xpu": frozenset({"float64", "qr", "cholesky", "solve", "eigh"}),
}
"""Operations that a backend lacks, or has on some machines only: they run on ``HOST`` instead.

mps has no float64, and the factorisations by version of macOS. npu multiplies no float64 matrices (torch_npu lists
bfloat16, float16 and float32 for ``mm``); it lists QR and Cholesky for its training cards alone, and neither solvers
nor eigenvalues. xpu has float64 on data-centre GPUs alone, and the factorisations depend on the build.
"""

PROBED = frozenset({"bfloat16", "wrapping", "shift"})
"""Operations that some devices of a backend have and others have not, or that its documents do not name: a trial says,
on the device itself. Ascend's 910A and 310P have no bfloat16, for example, and its later ones have.
"""

TRUSTED = ("cpu", "cuda", "meta")
"""Backends on which nothing is tried: all of it is there."""


def supports(device: torch.device, operation: str) -> bool:
    """Whether one of ``OPERATIONS`` runs on the device itself."""
    if operation in MISSING.get(device.type, frozenset()):
        return False
    return device.type in TRUSTED or operation not in PROBED or passes(device, operation)


@cache
def passes(device: torch.device, operation: str) -> bool:
    """Whether the trial of one of ``OPERATIONS`` works on the device: tried once a process."""
    return works(partial(OPERATIONS[operation], device))


def runs_on(device: torch.device, operation: str) -> torch.device:
    """Where one of ``OPERATIONS`` runs for tensors of ``device``: there, or on the host."""
    return device if supports(device, operation) else HOST


def double(x: Tensor) -> Tensor:
    """A float64 copy, on a device that has float64."""
    return x.to(runs_on(x.device, "float64")).double()


def product_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which products of matrices like x [..., n, n] are fastest, where bfloat16 is precise enough.

    That of x, or bfloat16 for large float32 matrices on a device that has units for it.
    """
    if x.dtype != torch.float32 or x.shape[-1] < LEAST_BFLOAT16:
        return x.dtype
    return torch.bfloat16 if _multiplies_bfloat16(x.device) else x.dtype


def _multiplies_bfloat16(device: torch.device) -> bool:
    if device.type == "cpu":
        found = torch.cpu.get_capabilities()
        return bool(found.get("avx512_bf16") or found.get("bf16"))  # x86, Arm
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type in ("npu", "xpu") and supports(device, "bfloat16")
