"""Families as data."""

from __future__ import annotations

from conftest import make_model
from jointquant.models.architecture import Architecture
from jointquant.models.registry import ARCHITECTURES
from jointquant.planning.shape import model_of


def of_layers(family: str, **changes: object) -> list[Architecture]:
    model, architecture = model_of(make_model(family, **changes).config)
    return [architecture.of_layer(layer) for layer in model.get_submodule(architecture.layers).children()]


def test_a_layer_has_a_latent_of_its_queries_or_direct_ones() -> None:
    names = [[site.name for site in each.sites[:4]] for each in of_layers("deepseek_v3")]
    assert names == [["attn_in", "q_latent_in", "kv_latent_in", "o_in"]] * 3
    first, *_ = of_layers("deepseek_v3", q_lora_rank=None)
    assert [site.name for site in first.latent_sites] == ["kv_latent_in"]
    assert first.sites[0].linears == ("self_attn.q_proj", "self_attn.kv_a_proj_with_mqa")


def test_what_is_of_a_layer_stays_so() -> None:
    """Asking again changes nothing, whatever a family has."""
    for family in ("deepseek_v2", "deepseek_v3", "glm4_moe", "qwen3_next", "llama"):
        model, architecture = model_of(make_model(family).config)
        for layer in model.get_submodule(architecture.layers).children():
            own = architecture.of_layer(layer)
            assert own.of_layer(layer) == own


def test_only_the_residual_stream_is_what_r1_turns() -> None:
    found = ARCHITECTURES["deepseek_v3"]
    assert [site.name for site in found.residual_sites] == ["attn_in", "mlp_in"]
    assert [site.name for site in found.inner_sites] == ["q_latent_in", "kv_latent_in", "o_in", "down_in"]
    assert len(found.normed_sites) == 4
