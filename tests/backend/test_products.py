"""Products: those of oneDNN are products, cut into the same bits, and differentiable."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from jointquant.backend.products import (
    LEAST_OUTPUTS,
    LEAST_SUMMANDS,
    Linear,
    add_product,
    has_onednn,
    hasten,
    linear_product,
    multiplied_by_onednn,
)

needs_onednn = pytest.mark.skipif(not has_onednn(), reason="this torch has no oneDNN")

ROWS = st.integers(2, 300)
OUTPUTS = st.integers(LEAST_OUTPUTS, 300)
SUMMANDS = st.integers(LEAST_SUMMANDS, 700)


def matrices(rows, columns, out, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator), torch.randn(out, columns, generator=generator)


@given(rows=st.integers(0, 40), columns=st.integers(1, 200), out=st.integers(1, 60), with_bias=st.booleans())
@settings(max_examples=60, deadline=None)
def test_it_is_the_product_whoever_computes_it(rows, columns, out, with_bias):
    x, weight = matrices(rows, columns, out)
    bias = torch.arange(float(out)) if with_bias else None
    exact = functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
    torch.testing.assert_close(linear_product(x, weight, bias).double(), exact, rtol=1e-5, atol=1e-4)


@needs_onednn
@given(rows=ROWS, columns=SUMMANDS, out=OUTPUTS, data=st.data())
@settings(max_examples=60, deadline=None)
def test_parts_of_a_product_are_the_same_bits_wherever_it_is_cut(rows, columns, out, data):
    x, weight = matrices(rows, columns, out)
    assert multiplied_by_onednn(x, weight)
    whole = linear_product(x, weight)
    cut, across = data.draw(st.integers(2, rows)), data.draw(st.integers(LEAST_OUTPUTS, out))
    assert torch.equal(linear_product(x[:cut], weight), whole[:cut])
    assert torch.equal(linear_product(x, weight[:across]), whole[:, :across])


@needs_onednn
@given(rows=ROWS, columns=SUMMANDS, out=OUTPUTS)
@settings(max_examples=20, deadline=None)
def test_threads_do_not_change_a_bit(rows, columns, out):
    x, weight = matrices(rows, columns, out)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(linear_product(x, weight))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*found)


@needs_onednn
@given(rows=st.integers(1, 3), tokens=st.integers(2, 100), columns=SUMMANDS, out=OUTPUTS, with_bias=st.booleans())
@settings(max_examples=30, deadline=None)
def test_gradients_are_those_of_autograd(rows, tokens, columns, out, with_bias):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(rows, tokens, columns, generator=generator, requires_grad=True)
    weight = torch.randn(out, columns, generator=generator, requires_grad=True)
    bias = torch.randn(out, generator=generator, requires_grad=True) if with_bias else None
    leaves = [x, weight] + ([] if bias is None else [bias])
    pull = torch.randn(rows, tokens, out, generator=generator)
    assert multiplied_by_onednn(x, weight)
    found = torch.autograd.grad(linear_product(x, weight, bias), leaves, pull)
    doubles = [leaf.detach().double().requires_grad_() for leaf in leaves]
    wanted = torch.autograd.grad(functional.linear(*doubles), doubles, pull.double())
    for each, want in zip(found, wanted, strict=True):
        torch.testing.assert_close(each.double(), want, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize(
    ("x", "weight"),
    [
        pytest.param((1, 128), (32, 128), id="one row"),
        pytest.param((32, 128), (LEAST_OUTPUTS - 1, 128), id="few outputs"),
        pytest.param((32, LEAST_SUMMANDS - 1), (32, LEAST_SUMMANDS - 1), id="few summands"),
        pytest.param((0, 128), (32, 128), id="no rows"),
    ],
)
def test_small_products_are_torchs_own(x, weight):
    assert not multiplied_by_onednn(torch.ones(x), torch.ones(weight))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes_are_torchs_own(dtype):
    x, weight = (each.to(dtype) for each in matrices(4, 128, 32))
    assert not multiplied_by_onednn(x, weight)
    assert torch.equal(linear_product(x, weight), functional.linear(x, weight))


def test_another_device_is_torchs_own():
    x, weight = (each.to("meta") for each in matrices(4, 128, 32))
    assert not multiplied_by_onednn(x, weight)
    assert linear_product(x, weight).shape == (4, 32)


class Other(nn.Linear):
    """A linear that a library has changed."""


def test_the_linears_of_a_model_are_hastened_and_no_others():
    model = nn.Sequential(nn.Linear(128, 64), nn.ReLU(), Other(64, 64), nn.Sequential(nn.Linear(64, 2, bias=False)))
    before, x = dict(model.named_parameters()), torch.randn(5, 128, generator=torch.Generator().manual_seed(2))
    wanted = model(x)
    hasten(model)
    assert [type(module) for module in model.modules()][1:] == [Linear, nn.ReLU, Other, nn.Sequential, Linear]
    assert all(found is before[name] for name, found in model.named_parameters())
    torch.testing.assert_close(model(x), wanted, rtol=1e-5, atol=1e-5)


@needs_onednn
@pytest.mark.parametrize("cut", [slice(0, 100), slice(28, 128)])
def test_matrices_with_gaps_are_multiplied_alike(cut):
    x, weight = matrices(40, 128, 32)
    wide = torch.zeros(40, 300), torch.zeros(32, 300)
    for each, values in zip(wide, (x, weight), strict=True):
        each[:, 100:228] = values
    gaps = [each[:, 100:228][:, cut] for each in wide]
    assert torch.equal(linear_product(*gaps), linear_product(*(each.contiguous() for each in gaps)))
    assert torch.equal(linear_product(x.t().contiguous().t(), weight), linear_product(x, weight))


@given(rows=st.integers(1, 40), columns=st.integers(1, 200), out=st.integers(1, 60), left=st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_a_product_is_added_in_place(rows, columns, out, left):
    x, weight = matrices(rows, columns, out)
    total = torch.ones(rows, left + out)
    add_product(total[:, left:], x, weight)
    exact = x.double() @ weight.double().t() + 1
    torch.testing.assert_close(total[:, left:].double(), exact, rtol=1e-5, atol=1e-4)
    assert torch.equal(total[:, :left], torch.ones(rows, left))
