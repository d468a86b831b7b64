"""The program is compiled once, where there is a compiler; without one an artifact runs all the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from jointquant.quantization.integer import IntFormat
from jointquant.quantization.ranges import DynamicRange
from jointquant.runtime.input_path import InputPath
from jointquant.runtime.kernels import compiler
from jointquant.runtime.kernels.selection import choose
from linears import exact, linear_of, tokens


@pytest.fixture
def asked_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As a new process would, with an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked = compiler._library
    monkeypatch.setattr(compiler, "_library", asked.__wrapped__)


@pytest.mark.usefixtures("asked_anew")
def test_it_is_kept_and_whole(tmp_path: Path) -> None:
    if compiler.missing() is not None:
        pytest.skip(f"the program {compiler.missing()}")
    folder = compiler.cache_folder()
    (kept,) = folder.iterdir()
    assert folder.is_relative_to(tmp_path)
    assert folder.stat().st_mode & 0o077 == 0
    before = kept.stat().st_mtime_ns
    compiler.library()
    assert kept.stat().st_mtime_ns == before


@pytest.mark.usefixtures("asked_anew")
@pytest.mark.parametrize("quantizer", [None, DynamicRange(IntFormat(8, False))])
def test_without_a_compiler(quantizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "/bin/false")
    assert "could not be compiled by /bin/false" in str(compiler.missing()) or "compiled on Linux" in str(
        compiler.missing()
    )
    with pytest.raises(compiler.NotCompiledError):
        compiler.library()
    linear = linear_of(48, 96, IntFormat(4, False, 32), InputPath(None, quantizer))
    linear.mode = "auto"
    for rows in (1, 40):
        x = tokens(rows, 96, torch.float32)
        assert choose(linear.problem(rows, x.dtype)).name == "expanded_tiles"
        torch.testing.assert_close(linear(x).double(), exact(linear, x), rtol=1e-5, atol=1e-4)


@pytest.mark.usefixtures("asked_anew")
def test_no_compiler_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "")
    assert "C compiler" in str(compiler.missing()) or "compiled on Linux" in str(compiler.missing())
