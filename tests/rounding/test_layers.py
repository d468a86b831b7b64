"""Pass 2 runs no layer for nobody: states go as far as someone asks for them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import jointquant
from commands import tensors_of
from conftest import make_model, small
from jointquant.rounding import layers as rounding_pass
from jointquant.rounding import weights as rounding
from jointquant.rounding.layer import LayerInWork
from jointquant.runtime.kernels.capabilities import exact_weight_bits
from jointquant.runtime.kernels.selection import VARIABLE
from jointquant.runtime.linear import PackedLinear

LAYERS = 3
GPTQ = "weights={num_bits: 4, method: gptq}"
RTN = "weights={num_bits: 4, method: rtn}"
FIRST = 'overrides=[{modules: "model.layers.0.*", weights: {method: gptq}}]'


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ((RTN, "activations.num_bits=4"), 0),
        ((RTN, "activations={num_bits: 4, clip_ratio: search}"), LAYERS - 1),
        ((RTN, "activations={num_bits: 8, strategy: tensor}"), LAYERS - 1),
        ((RTN, "kv_cache={num_bits: 4, centring: keys}"), LAYERS - 1),
        ((RTN, "refinement.steps=1"), LAYERS - 1),
        ((GPTQ,), LAYERS - 1),
        ((RTN, FIRST), 0),
        ((RTN, "head={num_bits: 4, method: rtn}"), 0),
        ((RTN, "head={num_bits: 4, method: gptq}"), LAYERS),
    ],
)
def test_layers_run_as_far_as_their_states_are_asked_for(
    changes: tuple[str, ...], expected: int, tmp_path: Path, tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Running them all gives the same tensors."""
    model, recipe = make_model("llama"), jointquant.load_recipe("fp16", small(*changes))
    runs, plain = [], LayerInWork.advance

    def counting(*arguments: object) -> None:
        runs.append(arguments)
        plain(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(LayerInWork, "advance", counting)
    jointquant.quantize(model, tmp_path / "a", recipe, tokenizer=tokenizer)
    assert len(runs) == expected
    monkeypatch.setattr(rounding_pass, "last_reader", lambda _: LAYERS)
    jointquant.quantize(model, tmp_path / "b", recipe, tokenizer=tokenizer)
    assert len(runs) == expected + LAYERS
    one, other = (tensors_of(tmp_path / name) for name in "ab")
    assert one
    assert one.keys() == other.keys()
    assert all(one[name].equal(other[name]) for name in one)


@pytest.mark.parametrize("kernels", ["auto", "integers", "dense", "reference"])
def test_rounded_layers_run_products_of_integers(
    kernels: str, tmp_path: Path, tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where their kernel does them and nobody has switched it off."""
    made: list[PackedLinear] = []

    class Kept(PackedLinear):
        def __init__(self, *arguments, **more) -> None:
            super().__init__(*arguments, **more)
            made.append(self)

    monkeypatch.setenv(VARIABLE, kernels)
    monkeypatch.setattr(rounding, "PackedLinear", Kept)
    recipe = jointquant.load_recipe("fp16", small(GPTQ, "activations.num_bits=4"))
    jointquant.quantize(make_model("llama"), tmp_path / "a", recipe, tokenizer=tokenizer)
    kernel = "int8_product" if exact_weight_bits(torch.device("cpu")) > 0 else "dense"
    used = {name for linear in made for name in linear.kernels_used()}
    assert used == {"reference" if kernels == "reference" else kernel}
