"""Experts of one shape are rounded together on accelerators, and come out as they do alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import jointquant
from commands import tensors_of
from conftest import make_model, small
from jointquant.quantization.packing import unpack
from jointquant.rounding import stacks, weights

CHANGES = ("weights.num_bits=4", "weights.method=gptq", "weights.group_size=8")


@pytest.mark.parametrize(("most", "sizes"), [(100, [5, 5]), (2, [2, 2, 1, 2, 2, 1])])
def test_experts_are_rounded_together(most: int, sizes: list[int], tmp_path: Path, monkeypatch, tokenizer) -> None:
    """The inputs and outputs of the experts' MLPs, 5 experts each; attention and shared experts alone."""
    recipe = jointquant.load_recipe("fp16", small(*CHANGES))
    model = make_model("qwen2_moe", num_hidden_layers=1, mlp_only_layers=[])
    jointquant.quantize(model, tmp_path / "alone", recipe, tokenizer=tokenizer)
    together: list[int] = []
    singles: list[str] = []

    def note(layer, sites, hessians):
        together.append(len(sites))
        return stacks.round_alike(layer, sites, hessians)

    def single(layer, site, hessian, sharing):
        singles.append(site.name)
        return round_site(layer, site, hessian, sharing)

    round_site = weights.round_site
    monkeypatch.setattr(stacks, "launches_cost", lambda device: True)
    monkeypatch.setattr(stacks, "most_in_stack", lambda shape, device: most)
    monkeypatch.setattr(weights, "round_alike", note)
    monkeypatch.setattr(weights, "round_site", single)
    jointquant.quantize(model, tmp_path / "together", recipe, tokenizer=tokenizer)
    assert together == [size for size in sizes if size > 1]
    assert len(singles) == 2 + 2 + sizes.count(1)  # attention, the shared expert, and what is left over
    found, expected = tensors_of(tmp_path / "together"), tensors_of(tmp_path / "alone")
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        if name.endswith("weight_packed"):  # values on the border of two integers may round either way
            codes, wanted = (unpack(x, 4, (len(x), 8 * x.shape[1])) for x in (tensor, expected[name]))
            assert (codes == wanted).float().mean() > 0.97, name
        else:
            torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0)


def test_each_is_alone_on_a_cpu(tmp_path: Path, monkeypatch, tokenizer) -> None:
    monkeypatch.setattr(weights, "round_alike", lambda *arguments: 1 / 0)
    recipe = jointquant.load_recipe("fp16", small(*CHANGES))
    jointquant.quantize(make_model("mixtral", num_hidden_layers=1), tmp_path / "a", recipe, tokenizer=tokenizer)
