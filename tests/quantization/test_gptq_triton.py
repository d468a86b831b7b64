"""GPTQ's columns in Triton (its interpreter, or the GPU where there is one) against those in torch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jointquant.backend import launches
from jointquant.quantization import gptq as module
from jointquant.quantization.gptq import HessianSum, factorize, gptq
from jointquant.quantization.integer import IntFormat

pytest.importorskip("triton", reason="the Triton program needs Triton: pip install triton")

from triton.runtime.errors import OutOfResources

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@given(
    fmt=st.builds(IntFormat, st.sampled_from([2, 3, 4, 8]), st.booleans(), st.sampled_from([None, 8, 24]))
    | st.builds(IntFormat, st.just(4), st.just(True), st.sampled_from([None, 8]), st.just(True)),
    out=st.sampled_from([1, 5, 131, 300]),
    size=st.sampled_from([24, 48, 168]),
    ordered=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=20, deadline=None)
def test_the_program_rounds_as_torch_does(fmt: IntFormat, out: int, size: int, ordered: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2 * size, size, generator=generator) @ torch.randn(size, size, generator=generator)
    weight = torch.randn(out, size, generator=generator).to(DEVICE)
    total = HessianSum(size, weight.device)
    total.update(x.to(DEVICE))
    factor = factorize(total.hessian(), activation_order=ordered)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "is_nvidia", lambda _: False)
        expected = gptq(weight, factor, fmt)
        patch.setattr(module, "is_nvidia", lambda _: True)
        found = gptq(weight, factor, fmt)
    assert torch.equal(found.scale, expected.scale)
    rows = (found.codes == expected.codes).all(1)  # a value on the border of two moves all that follows in its row
    assert rows.float().mean() >= 0.97
    lost, before = (((each.dequantize() - weight).cpu() @ x.T).square().sum(1).double() for each in (found, expected))
    assert lost.sum() <= 1.02 * before.sum() + 1e-9


def test_a_launch_that_fails_leaves_the_columns_to_torch_and_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise OutOfResources(300000, 101376, "shared memory")

    weight, fmt = torch.randn(5, 48).to(DEVICE), IntFormat(4, True)
    total = HessianSum(48, weight.device)
    total.update(torch.randn(96, 48).to(DEVICE))
    factor = factorize(total.hessian())
    monkeypatch.setattr(module, "is_nvidia", lambda _: False)
    expected = gptq(weight, factor, fmt)
    monkeypatch.setattr(module, "is_nvidia", lambda _: True)
    monkeypatch.setattr("jointquant.quantization.gptq_triton.round_columns", fail)
    launches.forget()
    with pytest.warns(UserWarning, match=r"gptq_triton cannot run 16 columns of 5 rows.*shared memory") as said:
        found = gptq(weight, factor, fmt)
    assert len(said) == 1
    assert torch.equal(found.codes, expected.codes)
    assert [failed["program"] for failed in launches.failed_launches()] == ["gptq_triton"]
    launches.forget()
    monkeypatch.setattr("jointquant.quantization.gptq_triton.round_columns", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        gptq(weight, factor, fmt)
