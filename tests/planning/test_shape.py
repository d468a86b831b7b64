"""The sizes of a model, from its configuration."""

from __future__ import annotations

import pytest

from conftest import COMMON, FAMILIES, SPECIAL, make_model
from jointquant.models.stream import open_stream
from jointquant.planning.shape import model_of, shape_of_model


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_are_those_of_the_model(family: str) -> None:
    model = make_model(family)
    shape, stream = shape_of_model(*model_of(model.config)), open_stream(model)
    assert shape_of_model(stream.skeleton, stream.architecture, shape.dtype) == shape
    sizes = [
        sum(p.numel() for name, p in model.named_parameters() if f".layers.{index}." in name) for index in range(3)
    ]
    largest = f".layers.{sizes.index(max(sizes))}."
    assert (shape.num_layers, shape.layer) == (3, max(sizes))
    assert shape.head == model.get_output_embeddings().weight.numel()
    routers = ("mlp.gate.weight", "mlp.shared_expert_gate.weight")
    assert shape.linears == sum(
        p.numel()
        for name, p in model.named_parameters()
        if largest in name and p.ndim >= 2 and not name.endswith(routers)
    )


def test_a_token_passes_some_of_the_experts() -> None:
    shape, sizes = shape_of_model(*model_of(make_model("qwen2_moe").config)), COMMON | SPECIAL["qwen2_moe"]
    assert shape.intermediate_size == sizes["intermediate_size"]  # of the dense layer
    expert, shared, chosen, hidden = (
        sizes[key]
        for key in (
            "moe_intermediate_size",
            "shared_expert_intermediate_size",
            "num_experts_per_tok",
            "hidden_size",
        )
    )
    attention = 2 * 48 * 48 + 2 * 24 * 48
    assert shape.active == pytest.approx(attention + 3 * hidden * (chosen * expert + shared))
    assert shape.inner_channels == pytest.approx(chosen * expert + shared)
