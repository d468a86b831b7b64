"""What is particular to single families, and what is refused."""

from __future__ import annotations

import json
import re
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

import jointquant
from conftest import FAMILIES, WITHOUT_R1, make_model, possible, small
from jointquant.artifact.inventory import OTHER, SCALES, inventory_of
from jointquant.errors import InputError
from jointquant.models.architecture import LinearSlice
from jointquant.models.layer import Place, run_layer
from jointquant.models.registry import ARCHITECTURES
from jointquant.models.source import Checkpoint
from jointquant.models.stream import open_stream
from jointquant.models.transforms import fuse_norms

ALL = [f"rotations.{r}.kind=hadamard" for r in ("r1", "r2", "r3", "r4")]
PLACE = Place(torch.device("cpu"), torch.float32)
INPUT_IDS = torch.randint(0, 2048, (2, 24), generator=torch.Generator().manual_seed(4))
NORMS = re.compile(r"norm\.weight$")

ORIGINAL = {"original_max_position_embeddings": 16}
SCALED = {"rope_theta": 10000.0, "factor": 4.0}
LLAMA_3 = ORIGINAL | SCALED | {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LONG = ORIGINAL | {"rope_type": "longrope", "short_factor": [1.0] * 6, "long_factor": [2.0] * 6}
# Inputs are 24 tokens long: longer than the 16 positions up to which ``dynamic`` and ``longrope`` change nothing.
POSITIONS: dict[str, tuple[str, dict[str, object]]] = {
    "default": ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}),
    "linear": ("llama", {"rope_parameters": SCALED | {"rope_type": "linear"}}),
    "dynamic": ("llama", {"rope_parameters": SCALED | {"rope_type": "dynamic"}, "max_position_embeddings": 16}),
    "llama3": ("llama", {"rope_parameters": LLAMA_3, "tie_word_embeddings": True}),
    "yarn": ("llama", {"rope_parameters": ORIGINAL | SCALED | {"rope_type": "yarn"}}),
    "longrope": ("phi3", {"rope_parameters": LONG | {"rope_theta": 10000.0}} | ORIGINAL),
}


def logits(model: PreTrainedModel, **more: Tensor) -> Tensor:
    with torch.no_grad():
        return model(input_ids=INPUT_IDS, **more).logits


def rotated(model: PreTrainedModel, family: str, folder: Path, tokenizer, *changes: str) -> PreTrainedModel:
    """The artifact with all rotations that are possible, at 16 bits, loaded."""
    recipe = jointquant.load_recipe("fp16", small(*possible(family, *ALL), "calibration.seqlen=16", *changes))
    jointquant.quantize(model, folder, recipe, tokenizer=tokenizer)
    return AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("rope", POSITIONS)
def test_rotary_embeddings_of_every_kind(rope: str, tmp_path: Path, tokenizer) -> None:
    family, changes = POSITIONS[rope]
    model = make_model(family, **changes)
    loaded = rotated(model, family, tmp_path / "a", tokenizer)
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("rope", [rope for rope in POSITIONS if rope != "default"])
def test_the_scaling_matters_at_this_length(rope: str) -> None:
    """What the test above compares would differ without the scaling."""
    family, changes = POSITIONS[rope]
    unscaled = POSITIONS["default"][1] | {"tie_word_embeddings": bool(changes.get("tie_word_embeddings"))}
    error = (logits(make_model(family, **changes)) - logits(make_model(family, **unscaled))).abs().max()
    assert error > 1e-2


@pytest.mark.parametrize("rope", POSITIONS)
def test_the_stream_takes_positions_from_the_model(rope: str) -> None:
    family, changes = POSITIONS[rope]
    model = make_model(family, **changes)
    with torch.no_grad():
        expected = model(input_ids=INPUT_IDS, output_hidden_states=True).hidden_states
    stream = open_stream(model)
    frontend = stream.frontend(PLACE)
    arguments = frontend.layer_arguments(INPUT_IDS)
    hidden_states = frontend.hidden_states(INPUT_IDS)
    for index in range(stream.num_layers):
        torch.testing.assert_close(hidden_states, expected[index], rtol=1e-4, atol=1e-4)
        layer = stream.layer(index, PLACE)
        fuse_norms(layer, stream.architecture)
        with torch.no_grad():
            hidden_states = run_layer(layer, hidden_states, arguments[index])


@pytest.mark.parametrize("family", FAMILIES)
def test_padded_windows(family: str, tmp_path: Path, tokenizer) -> None:
    """With padding on the left, where masks and learned positions depend on the attention mask."""
    model = make_model(family)
    loaded = rotated(model, family, tmp_path / "a", tokenizer)
    mask = torch.ones_like(INPUT_IDS)
    mask[0, :5] = 0
    actual, expected = logits(loaded, attention_mask=mask), logits(model, attention_mask=mask)
    torch.testing.assert_close(actual[mask == 1], expected[mask == 1], rtol=1e-4, atol=2e-4)


def fate(name: str, written: dict[str, Tensor], kept: list[dict[str, Any]], like: Tensor) -> str:
    """What became of a parameter: quantized, named as kept, or merged, so that nothing of it is left."""
    if f"{name}_packed" in written:
        assert name not in written, name
        return "quantized"
    if any(fnmatch(name, each["name"]) for each in kept):
        assert written[name].shape == like.shape, name
        return "kept"
    left = written.get(name)
    assert left is None or (left.ndim == 1 and left.min() == left.max() and left[0] in (0, 1)), name
    return "merged"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("recipe", ["rtn", "w4a4kv4"])
def test_nothing_is_skipped_silently(family: str, recipe: str, tmp_path: Path, tokenizer) -> None:
    """Every parameter of the model, and every tensor of the artifact, is quantized, merged, or named as kept."""
    steps = [*(f"rotations.{r}.steps=1" for r in ("r1", "r2", "r3")), "refinement.steps=1"]
    model, changes = make_model(family), [] if recipe == "rtn" else steps
    if recipe == "w4a4kv4" and family == "gemma2":
        changes.append("kv_cache.centring=values")
    settings = jointquant.load_recipe(recipe, small(*(possible(family, *changes) if recipe == "w4a4kv4" else changes)))
    result = jointquant.quantize(model, tmp_path / "a", settings, tokenizer=tokenizer)
    source, stream = Checkpoint(tmp_path / "a"), open_stream(model)
    written = {name: source.load(name) if "packed" not in name else torch.empty(0) for name in source.shapes()}
    loaded = {name: stream.source.load(name) for name in stream.skeleton.state_dict() if name in stream.source.shapes()}
    fates = {name: fate(name, written, result.kept, tensor) for name, tensor in loaded.items()}
    linears = {
        f"{stream.architecture.layer_prefix(index)}.{linear}.weight"
        for index in range(stream.num_layers)
        for linear in stream.architecture_of(index).linears
    }
    quantized = {name for name, what in fates.items() if what == "quantized"}
    assert quantized == linears
    assert result.quantized_weights == sum(loaded[name].numel() for name in linears)
    assert all(NORMS.search(name) or "norm.bias" in name for name, what in fates.items() if what == "merged")
    scaled = {
        name for name in loaded if any(fnmatch(name, each["name"]) for each in result.kept if each["why"] == SCALES)
    }
    smoothed = recipe == "w4a4kv4" and family in WITHOUT_R1  # elsewhere R1 stands behind the norms
    assert scaled == {name for name in loaded if smoothed and re.search(r"(input|pre_feedforward)_layernorm", name)}
    named = [name for name in written if any(fnmatch(name, each["name"]) for each in result.kept)]
    assert sum(each["parameters"] for each in result.kept) == sum(written[name].numel() for name in named)
    assert all(each["why"] != OTHER for each in result.kept)
    config = json.loads((tmp_path / "a" / "config.json").read_text())["quantization_config"]
    assert config["kept"] == result.kept
    assert config["quantized_weights"] == result.quantized_weights
    assert "kept in high precision" in (tmp_path / "a" / "README.md").read_text()


def test_a_parameter_of_no_known_kind_is_named_all_the_same() -> None:
    layer = open_stream(make_model("llama")).layer(0, PLACE)
    layer.self_attn.sinks = nn.Parameter(torch.zeros(4))  # type: ignore[union-attr]
    kept = inventory_of(layer, "model.layers.0", ARCHITECTURES["llama"]).kept
    assert [(each.parameters, each.why) for each in kept if each.name == "model.layers.*.self_attn.sinks"] == [
        (4, OTHER)
    ]


@pytest.mark.parametrize(
    "changes",
    [{}, {"enable_bias": False}, {"layer_norm_elementwise_affine": False}, {"tie_word_embeddings": False}],
    ids=str,
)
def test_layer_norms_become_rms_norms(changes: dict[str, object], tmp_path: Path, tokenizer) -> None:
    model = make_model("opt", **changes)
    loaded = rotated(model, "opt", tmp_path / "a", tokenizer)
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-4, atol=2e-4)
    kinds = {type(module) for module in loaded.modules()}
    assert nn.RMSNorm in kinds
    assert nn.LayerNorm not in kinds


def test_a_layer_norm_in_a_rotated_basis_is_seen(tmp_path: Path, tokenizer) -> None:
    """The measure above can fail: with one LayerNorm left where the basis is rotated, it does."""
    model = make_model("opt")
    loaded = rotated(model, "opt", tmp_path / "a", tokenizer)
    loaded.set_submodule("model.decoder.layers.1.final_layer_norm", nn.LayerNorm(48))
    assert (logits(loaded) - logits(model)).abs().max() > 1e-2


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "opt"])
def test_embeddings_of_rms_norm_families_are_not_centred(family: str) -> None:
    model, architecture = make_model(family), ARCHITECTURES[family]
    frontend = open_stream(model).frontend(PLACE)
    for name in architecture.embeddings:
        assert torch.equal(frontend.module(name).weight, model.get_submodule(name).weight)


@pytest.mark.parametrize("family", WITHOUT_R1)
@pytest.mark.parametrize("kind", ["hadamard", "learned"])
def test_r1_is_refused_where_no_rotation_passes(family: str, kind: str, tmp_path: Path, tokenizer) -> None:
    recipe = jointquant.load_recipe("fp16", small(f"rotations.r1.kind={kind}"))
    with pytest.raises(InputError, match=rf"r1 is {kind}: {family} .*--set rotations\.r1\.kind=none"):
        jointquant.quantize(make_model(family), tmp_path / "a", recipe, tokenizer=tokenizer)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("family", WITHOUT_R1)
def test_r1_would_change_the_function(family: str, tmp_path: Path, tokenizer, monkeypatch) -> None:
    """The refusal is right: with R1 merged all the same, the function is another."""
    model = make_model(family)
    monkeypatch.setattr("jointquant.runtime.assembly.Assembly._check_r1", lambda self: None)
    recipe = jointquant.load_recipe("fp16", small("rotations.r1.kind=hadamard"))
    jointquant.quantize(model, tmp_path / "a", recipe, tokenizer=tokenizer)
    error = (logits(AutoModelForCausalLM.from_pretrained(tmp_path / "a")) - logits(model)).abs().max()
    assert error > 1e-2


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("opt", {"do_layer_norm_before": False}, "do_layer_norm_before is False .*expected True"),
        ("opt", {"_remove_final_layer_norm": True}, "_remove_final_layer_norm is True .*expected False"),
        ("opt", {"word_embed_proj_dim": 24}, "word_embed_proj_dim is 24 .*expected 48"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True .*expected False"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        ("opt", {"num_key_value_heads": 2}, "v_proj has 48 outputs: 4 heads and 2 KV heads of size 12"),
    ],
)
def test_variants_are_refused(family: str, changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        open_stream(make_model(family, **changes))
    assert "\n" not in str(raised.value)


def test_rows_of_a_fused_linear() -> None:
    parts = ("query", "key", "value")
    assert LinearSlice("qkv", parts, "value").rows(48, 24) == slice(72, 96)
    assert LinearSlice("qkv", parts, "key").rows(48, 24) == slice(48, 72)
    assert LinearSlice("qkv", parts).out_features(48, 24) == 96
    assert LinearSlice("v_proj").rows(48, 24) == slice(0, 24)


def test_code_beside_the_base_model_is_not_named(tmp_path: Path, tokenizer) -> None:
    """Phi 3 comes with its own modelling code; the artifact runs transformers' and must not ask for the other."""
    model = make_model("phi3")
    model.config.auto_map = {"AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"}
    loaded = rotated(model, "phi3", tmp_path / "a", tokenizer)
    assert "auto_map" not in (tmp_path / "a" / "config.json").read_text()
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-4, atol=2e-4)
