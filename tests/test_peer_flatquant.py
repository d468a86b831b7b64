"""``benchmarks/peer_flatquant.py``: its transforms change nothing by themselves, and learning lowers the error."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

from flat_layer import OFF, Bits, FlatLayer, Rounded, factors, symmetric, turned, with_zero_point
from peer_flatquant import Plan, quantize

NOTHING = Bits(OFF, OFF, OFF)


def small(layers: int = 2, spread: float = 0.3) -> Any:
    """3 heads, one of keys and values, sizes whose factors differ."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 3, "num_key_value_heads": 1}
    config = LlamaConfig(vocab_size=50, num_hidden_layers=layers, initializer_range=spread, **sizes)
    return LlamaForCausalLM(config).double().eval()


def shaken(flat: FlatLayer) -> FlatLayer:
    """With all that is learned far from where it starts."""
    for parameter in flat.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.3 * torch.randn_like(parameter))
    return flat.double()


@torch.no_grad()
def test_transforms_alone_leave_the_function() -> None:
    model, tokens = small(), torch.arange(24).reshape(2, 12)
    wanted = model(tokens).logits
    for index, layer in enumerate(model.model.layers):
        model.model.layers[index] = shaken(FlatLayer(layer, NOTHING, torch.Generator().manual_seed(index)))
        model.model.layers[index].precision = torch.float64
    torch.testing.assert_close(model(tokens).logits, wanted, rtol=0, atol=1e-9)
    for flat in model.model.layers:
        flat.freeze()
    torch.testing.assert_close(model(tokens).logits, wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("bits", [Bits(8, OFF, OFF), Bits(OFF, 8, OFF), Bits(OFF, OFF, 8)])
@torch.no_grad()
def test_each_quantizer_is_in_the_path(bits: Bits) -> None:
    model, tokens = small(), torch.arange(24).reshape(2, 12)
    wanted = model(tokens).logits
    for index, layer in enumerate(model.model.layers):
        model.model.layers[index] = FlatLayer(layer, bits, torch.Generator().manual_seed(index)).double()
        model.model.layers[index].freeze()
    error = (model(tokens).logits - wanted).norm() / wanted.norm()
    assert 1e-5 < error < 0.1


def test_all_that_is_learned_matters() -> None:
    """Every threshold, scaling and matrix has a gradient, none of them all zeros; what is not learned has none."""
    model = small()
    flat = FlatLayer(model.model.layers[0], Bits(), torch.Generator().manual_seed(0)).double()
    hidden = torch.randn(2, 12, 24, dtype=torch.float64)
    rope = model.model.rotary_emb(hidden, position_ids=torch.arange(12)[None])
    flat(hidden, rope).square().mean().backward()
    learned = {name: value.grad for name, value in flat.named_parameters() if value.requires_grad}
    assert [name for name, gradient in learned.items() if gradient is None or not gradient.any()] == []
    for part in (*flat.cache_thresholds.grad, flat.qkv.weight_threshold.grad):
        assert part.all()
    assert all(value.grad is None for value in (*flat.norms.parameters(), flat.o.log_scales))


def test_a_kronecker_product() -> None:
    first, second, rows = (torch.randn(*shape, dtype=torch.float64) for shape in ((3, 3), (4, 4), (5, 12)))
    found = turned(rows, first, second).unflatten(-1, (4, 3)).transpose(-1, -2).flatten(-2)
    torch.testing.assert_close(found, rows @ torch.kron(first, second))
    assert factors(576) == (24, 24)
    assert factors(1536) == (32, 48)


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_grids(share: float) -> None:
    """Against a search of the nearest among all that a grid has; with a share of a half much is cut off."""
    values, threshold = torch.randn(7, 33, dtype=torch.float64), torch.tensor(share, dtype=torch.float64).logit(1e-16)
    step = share * values.abs().amax(-1, keepdim=True) / 7
    torch.testing.assert_close(symmetric(values, 4, threshold), nearest(values, step * torch.arange(-8, 8)))
    least, largest = share * values.amin(-1, keepdim=True), share * values.amax(-1, keepdim=True)
    step = (largest - least) / 15
    low = (least / step).round()
    wanted = nearest(values, step * (low + torch.arange(16)))
    torch.testing.assert_close(with_zero_point(values, 4, threshold.repeat(2)), wanted)


def test_a_gradient_passes_what_is_rounded_and_not_what_is_cut_off() -> None:
    steps = torch.tensor([-9.0, -8.4, 0.3, 7.4, 7.6], requires_grad=True)
    rounded = Rounded.apply(steps, -8, 7)
    assert rounded.tolist() == [-8, -8, 0, 7, 7]
    rounded.backward(torch.arange(1.0, 6))
    assert steps.grad is not None
    assert steps.grad.tolist() == [0, 2, 3, 4, 0]


def nearest(values: Tensor, grid: Tensor) -> Tensor:
    """Of each row's levels [n, levels]."""
    return grid.gather(-1, (values[:, :, None] - grid[:, None]).abs().argmin(-1))


def test_learning_lowers_the_error_and_layers_are_kept(tmp_path: Path) -> None:
    windows, plan = torch.randint(50, (16, 32), generator=torch.Generator().manual_seed(0)), Plan(epochs=10)
    kept, again, alone = (small(spread=0.1).float() for _ in range(3))
    rows = quantize(kept, windows, Bits(), plan, tmp_path)
    for row in rows:
        assert row["losses"][-1] < 0.8 * row["losses"][0], row
    assert quantize(again, windows, Bits(), plan, tmp_path) == rows
    with pytest.raises(ValueError, match="name another folder"):
        quantize(small(spread=0.1).float(), windows, Bits(), Plan(epochs=9), tmp_path)
    quantize(alone, windows, Bits(), plan)
    for other in (again, alone):
        torch.testing.assert_close(other(windows).logits, kept(windows).logits, rtol=0, atol=1e-5)


def test_biases_are_refused() -> None:
    layer = small(1).model.layers[0]
    layer.mlp.down_proj.bias = nn.Parameter(torch.zeros(24))
    with pytest.raises(ValueError, match="bias"):
        FlatLayer(layer, NOTHING, torch.Generator())
