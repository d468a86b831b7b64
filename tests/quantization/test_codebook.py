"""Codebooks: the levels of NF4, nearest codes, RTN and GPTQ with them, the loaded artifact."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import jointquant
from conftest import FAMILIES, make_model, possible, small
from jointquant.errors import InputError
from jointquant.models.registry import ARCHITECTURES
from jointquant.quantization.codebook import NF4, CodebookFormat
from jointquant.quantization.gptq import HessianSum, factorize, gptq
from jointquant.quantization.integer import IntFormat, to_groups
from jointquant.quantization.packing import pack, unpack
from jointquant.quantization.weights import round_to_nearest
from jointquant.runtime.linear import PackedLinear

INPUT_IDS = torch.randint(0, 2048, (2, 20), generator=torch.Generator().manual_seed(3))


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_levels_are_normal_quantiles() -> None:
    """Eight quantiles above zero, seven below, over the largest of them (QLoRA's construction)."""
    offset = 0.9677083
    above = torch.special.ndtri(torch.linspace(offset, 0.5, 9, dtype=torch.float64))[:-1]
    below = -torch.special.ndtri(torch.linspace(offset, 0.5, 8, dtype=torch.float64))[:-1]
    levels = torch.cat([above, torch.zeros(1), below]).sort().values
    torch.testing.assert_close(levels / levels.max(), torch.tensor(NF4, dtype=torch.float64), rtol=0, atol=1e-6)


def test_codes_are_the_nearest_levels() -> None:
    fmt = CodebookFormat(NF4, 16)
    weight = randn(8, 64)
    rounded = round_to_nearest(weight, fmt, "none")
    groups = to_groups(weight, fmt)
    scale = groups.abs().amax(-1, keepdim=True)
    torch.testing.assert_close(rounded.scale, scale.squeeze(-1))
    candidates = scale.unsqueeze(-1) * torch.tensor(NF4)  # [out, groups, 1, levels]
    nearest = (candidates - groups.unsqueeze(-1)).abs().amin(-1)
    torch.testing.assert_close((to_groups(rounded.dequantize(), fmt) - groups).abs(), nearest)
    assert int(rounded.codes.min()) >= -8
    assert int(rounded.codes.max()) <= 7
    assert torch.equal(unpack(pack(rounded.codes, 4), 4, (8, 64)), rounded.codes)


def test_zeros_stay_zeros_and_extremes_are_exact() -> None:
    weight = torch.zeros(2, 16)
    weight[1, 3], weight[1, 5] = -2.5, 2.5
    assert torch.equal(round_to_nearest(weight, CodebookFormat(NF4, 16), "none").dequantize(), weight)


def test_normal_weights_suit_nf4_better_than_integers() -> None:
    weight = randn(64, 256)
    errors = [
        float((round_to_nearest(weight, fmt, "none").dequantize() - weight).square().mean())
        for fmt in (CodebookFormat(NF4, 64), IntFormat(4, True, 64))
    ]
    assert errors[0] < 0.9 * errors[1]


def test_gptq_loses_less_output_than_rtn() -> None:
    x, weight, fmt = randn(512, 64, seed=1) @ randn(64, 64, seed=2), randn(32, 64), CodebookFormat(NF4, 16)
    hessian = HessianSum(64, x.device)
    hessian.update(x)
    by_gptq = gptq(weight, factorize(hessian.hessian()), fmt)
    by_rtn = round_to_nearest(weight, fmt)
    lost = [float((x @ (w.dequantize() - weight).T).square().sum()) for w in (by_gptq, by_rtn)]
    assert lost[0] < 0.8 * lost[1]


def test_a_codebook_must_be_one() -> None:
    with pytest.raises(ValueError, match="power of two"):
        CodebookFormat((-1.0, 0.0, 1.0))
    with pytest.raises(ValueError, match="ascend"):
        CodebookFormat((1.0, -1.0))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_the_artifact_holds_codes(family: str, method: str, tmp_path: Path, tokenizer) -> None:
    size = 8 if ARCHITECTURES[family].mixture else 16  # an expert's inner size is 40 or 24
    changes = [f"weights={{type: nf4, num_bits: 4, group_size: {size}}}", f"weights.method={method}"]
    model = make_model(family)
    recipe = jointquant.load_recipe("fp16", small(*possible(family, *changes, "rotations.r2.kind=hadamard")))
    jointquant.quantize(model, tmp_path / "a", recipe, tokenizer=tokenizer)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    packed = [module for module in loaded.modules() if isinstance(module, PackedLinear)]
    assert packed
    for linear in packed:
        assert linear.fmt == CodebookFormat(NF4, size)
        assert not hasattr(linear, "weight_zero_point")
        weight = linear.quantized_weight()
        distinct = {round(v, 5) for v in (weight.dequantize()[0, :size] / weight.scale[0, 0]).tolist()}
        assert distinct <= {round(level, 5) for level in NF4}
    with torch.no_grad():
        expected, actual = model(input_ids=INPUT_IDS).logits, loaded(input_ids=INPUT_IDS).logits
    assert 0 < float((actual - expected).norm() / expected.norm()) < 0.8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["weights={type: nf4, num_bits: 4}"], "group_size 64 .* does not divide 48"),
        (["weights={type: nf4, num_bits: 3}"], "4 bits"),
        (["weights={type: nf4, num_bits: 4, symmetric: false}"], "zero point"),
        (["weights={type: fp4}"], "weights.type"),
    ],
)
def test_refusals_are_one_line(changes: list[str], message: str, tmp_path: Path, tokenizer) -> None:
    def run() -> None:
        recipe = jointquant.load_recipe("fp16", small(*changes))
        jointquant.quantize(make_model("llama"), tmp_path / "a", recipe, tokenizer=tokenizer)

    with pytest.raises(InputError, match=message) as refused:
        run()
    assert "\n" not in str(refused.value)
