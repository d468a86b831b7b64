"""Weights that are rounded together are what each is alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from jointquant.backend import launches
from jointquant.backend.devices import has_triton
from jointquant.errors import OverflowedError
from jointquant.quantization import gptq as module
from jointquant.quantization.gptq import HessianSum, factorize, gptq
from jointquant.quantization.gptq_stack import factorize_stack, gptq_stack, most_in_stack
from jointquant.quantization.integer import IntFormat


def problem(count: int, out: int, size: int, seed: int = 0) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Weights [count, out, size], inputs and Hessians of each."""
    generator = torch.Generator().manual_seed(seed)
    inputs, hessians = [], []
    for _ in range(count):
        x = torch.randn(2 * size, size, generator=generator) @ torch.randn(size, size, generator=generator)
        total = HessianSum(size, x.device)
        total.update(x)
        inputs.append(x)
        hessians.append(total.hessian())
    return torch.randn(count, out, size, generator=generator), inputs, hessians


@pytest.mark.parametrize("fmt", [IntFormat(4, True), IntFormat(3, False, 24)])
@pytest.mark.parametrize("ordered", [False, True])
def test_as_each_is_alone(fmt: IntFormat, ordered: bool) -> None:
    check(fmt, ordered, 168)


@pytest.mark.skipif(not has_triton(), reason="needs Triton")
def test_as_each_is_alone_by_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "is_nvidia", lambda _: True)
    launches.forget()
    check(IntFormat(3, False, 24), True, 48)
    assert launches.failed_launches() == []


def check(fmt: IntFormat, ordered: bool, size: int) -> None:
    """Up to values on the border of two integers: products of stacks add in another order."""
    weights, inputs, hessians = problem(3, 40, size)
    hessians[1][:, 5] = hessians[1][5] = 0  # an input that was always zero
    factor = factorize_stack(hessians, 0.01, ordered)
    found = gptq_stack(weights, factor, fmt)
    assert len(found) == 3
    for number, (weight, x, hessian) in enumerate(zip(weights, inputs, hessians, strict=True)):
        alone = factorize(hessian, 0.01, ordered)
        assert torch.equal(factor.order[number], alone.order)
        assert torch.equal(factor.dead[number], alone.dead)
        torch.testing.assert_close(factor.feedback[number], alone.feedback, rtol=1e-3, atol=1e-4)
        expected = gptq(weight, alone, fmt)
        assert torch.equal(found[number].scale, expected.scale)
        assert torch.equal(found[number].zero_point, expected.zero_point)
        same = (found[number].codes == expected.codes).all(1)
        assert same.float().mean() >= 0.9
        if number != 1:
            lost, before = (((w.dequantize() - weight) @ x.T).square().sum() for w in (found[number], expected))
            assert lost <= 1.02 * before


def test_one_that_needs_more_damping_gets_it_alone() -> None:
    _, _, hessians = problem(3, 1, 24)
    hessians[1] = torch.ones(24, 24) - 0.01 * torch.eye(24)  # not positive definite
    factor = factorize_stack(hessians, 1e-6)
    alone = factorize(hessians[1], 1e-6)
    assert factor.damping == alone.damping > 1e-6
    assert torch.equal(factor.feedback[1], alone.feedback)
    torch.testing.assert_close(factor.feedback[2], factorize(hessians[2], 1e-6).feedback, rtol=1e-3, atol=1e-4)


def test_an_overflow_is_said() -> None:
    _, _, hessians = problem(2, 1, 24)
    hessians[1][3, 3] = torch.inf
    with pytest.raises(OverflowedError, match="not finite"):
        factorize_stack(hessians)


def test_a_stack_is_no_larger_than_what_is_rounded_at_once() -> None:
    host = torch.device("cpu")
    assert most_in_stack((64, 32), host) == 2**23 // 64 // 32
    assert most_in_stack((16, 32), host) == 2**23 // 64 // 32
    assert most_in_stack((10**4, 10**4), host) == 1
