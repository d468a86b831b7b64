"""What a backend lacks, and where that runs: on the host, and on a fake npu in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from jointquant.backend import operations
from jointquant.backend.devices import resolve_dtype
from jointquant.backend.operations import HOST, MISSING, OPERATIONS, PROBED, runs_on, supports, works
from jointquant.quantization.balancing import power
from jointquant.quantization.gptq import factorize
from jointquant.quantization.packing import pack, unpack
from jointquant.rotations.merging import rotate_rows
from jointquant.rotations.orthogonal import cayley_transform, orthogonal_factor
from jointquant.rotations.sampling import token_keys

KNOWN = tuple(name for name in OPERATIONS if name not in PROBED)

ROUTED: dict[str, Callable[[torch.Tensor], object]] = {
    "float64": lambda x: rotate_rows(x, x),
    "qr": orthogonal_factor,
    "cholesky": lambda x: factorize(x @ x.T),
    "solve": lambda x: cayley_transform(x - x.T),
    "eigh": lambda x: power(x @ x.T, 0.5),
    "wrapping": lambda x: token_keys(x, 3),
    "shift": lambda x: unpack(pack(torch.zeros_like(x, dtype=torch.int8), 4), 4, x.shape),  # type: ignore[arg-type]
    "bfloat16": lambda x: torch.zeros(1, dtype=resolve_dtype("auto", x.device, torch.bfloat16), device=x.device) + 1,
}
"""By operation, what asks for it."""


def test_on_a_fake_npu() -> None:
    """In a process of its own: torch cannot forget a backend."""
    cases = [Path(__file__).with_name(name) for name in ("on_fake_npu.py", "waits_on_fake_npu.py")]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *map(str, cases)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=cases[0].parents[2])
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


@pytest.mark.parametrize("backend", MISSING)
@pytest.mark.parametrize("operation", KNOWN)
def test_the_table_routes(backend: str, operation: str) -> None:
    device = SimpleNamespace(type=backend)  # torch knows npu only with torch_npu
    expected = HOST if operation in MISSING[backend] else device
    assert runs_on(device, operation) == expected  # type: ignore[arg-type]
    assert runs_on(HOST, operation) == HOST


@pytest.mark.parametrize("operation", KNOWN)
def test_what_a_backend_lacks_runs_elsewhere(operation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU plays a backend that lacks one operation, and a device without data plays the host."""
    x = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    for other in KNOWN:
        monkeypatch.setitem(MISSING, "cpu", frozenset({other}))
        monkeypatch.setattr(operations, "HOST", torch.device("meta"))
        if operation != other:
            ROUTED[operation](x)
        elif operation == "float64":
            assert str(ROUTED[operation](x).device) == "meta"  # type: ignore[attr-defined]
        else:
            with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
                ROUTED[operation](x)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_trials_work_on_the_host_and_fail_without_data(operation: str) -> None:
    assert works(lambda: OPERATIONS[operation](HOST))
    assert not works(lambda: OPERATIONS[operation](torch.device("meta")))


def test_a_device_without_bfloat16_computes_its_checkpoints_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "passes", lambda device, operation: operation != "bfloat16")
    device = torch.device("xpu")
    assert not supports(device, "bfloat16")
    assert resolve_dtype("auto", device, torch.bfloat16) == torch.float32
    assert resolve_dtype("auto", device, torch.float16) == torch.float16
    with pytest.raises(ValueError, match="bfloat16 is not for xpu devices: expected float32 or float16"):
        resolve_dtype("bfloat16", device, torch.float32)
    monkeypatch.setattr(operations, "passes", lambda device, operation: True)
    assert resolve_dtype("auto", device, torch.bfloat16) == torch.bfloat16
