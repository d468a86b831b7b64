"""Dense checkpoints: every family's function, the right base model, and what they cannot hold."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from conftest import DEMO, FAMILIES, few_steps, make_model, possible, small
from export.artifacts import Workshop
from jointquant import InputError, export_artifact, load_recipe, quantize
from jointquant.runtime.loading import load_tokenizer

INPUT_IDS = torch.randint(0, 2048, (2, 20), generator=torch.Generator().manual_seed(2))
PLAIN = tuple(family for family in FAMILIES if family != "opt")


def logits(model: object) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=INPUT_IDS).logits  # type: ignore[operator]


@pytest.mark.parametrize("family", PLAIN)
def test_rotated_and_dequantized(family: str, tmp_path: Path) -> None:
    """The rotated checkpoint is the base model in another basis; the dequantized one is the artifact."""
    model, tokenizer = make_model(family), load_tokenizer(DEMO / "model")
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    recipe = load_recipe("w4a16", small(*few_steps("w4a16"), "weights.group_size=4", *possible(family)))
    quantize(tmp_path / "base", tmp_path / "a", recipe)
    export_artifact(tmp_path / "a", "dense", tmp_path / "rotated", base=tmp_path / "base")
    export_artifact(tmp_path / "a", "dense", tmp_path / "dequantized", dequantized=True)
    rotated = AutoModelForCausalLM.from_pretrained(tmp_path / "rotated")
    torch.testing.assert_close(logits(rotated), logits(model), rtol=1e-3, atol=1e-3)
    dequantized = AutoModelForCausalLM.from_pretrained(tmp_path / "dequantized")
    native = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    torch.testing.assert_close(logits(dequantized), logits(native), rtol=1e-3, atol=1e-3)
    assert (logits(native) - logits(model)).abs().max() > 0.01
    for loaded in (rotated, dequantized):
        assert type(loaded) is type(model)
        assert loaded.config.tie_word_embeddings is False


def test_an_online_recipe_still_has_its_rotated_model(workshop: Workshop, tmp_path: Path) -> None:
    """R3, R4 and the quantizers are no part of the rotated model before rounding."""
    artifact = workshop.of_demo("native only")
    export_artifact(artifact, "dense", tmp_path / "rotated", base=DEMO / "model", dtype="float32")
    rotated, base = (
        AutoModelForCausalLM.from_pretrained(f, dtype=torch.float32) for f in (tmp_path / "rotated", DEMO / "model")
    )
    torch.testing.assert_close(logits(rotated), logits(base), rtol=1e-3, atol=1e-3)
    with pytest.raises(
        InputError, match=r"tier 3: .*in the way: R3 is online .*; the KV cache .*; R4 is online .*; activations are"
    ):
        export_artifact(artifact, "dense", tmp_path / "dequantized", dequantized=True)


def test_the_base_model_is_asked_for_and_checked(workshop: Workshop, tmp_path: Path) -> None:
    artifact = workshop.of_demo("w4a16")
    with pytest.raises(InputError, match=r"expected `base` with that model, or `dequantized=True`"):
        export_artifact(artifact, "dense", tmp_path / "a")
    other = make_model("llama", hidden_size=192, intermediate_size=512, num_attention_heads=6, head_dim=32)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match="is not the one that this artifact was made of"):
        export_artifact(artifact, "dense", tmp_path / "a", base=tmp_path / "other")
    base = AutoModelForCausalLM.from_pretrained(DEMO / "model")
    for layer in base.model.layers[1:]:
        layer.mlp.gate_proj.weight.data = layer.mlp.gate_proj.weight.data.flip(0)
    base.save_pretrained(tmp_path / "alike")
    with pytest.raises(InputError, match=r"its rotated model\.layers\.1\.mlp\.gate_proj differs"):
        export_artifact(artifact, "dense", tmp_path / "a", base=tmp_path / "alike")
    assert not (tmp_path / "a").exists()
    assert not list(tmp_path.glob(".a*"))


def test_an_artifact_without_rounding_needs_no_base(workshop: Workshop, tmp_path: Path) -> None:
    artifact = workshop.tiny("llama", "fp16", "rotations.r1.kind=hadamard")
    export_artifact(artifact, "dense", tmp_path / "a")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    torch.testing.assert_close(logits(loaded), logits(make_model("llama")), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("options", [{"dequantized": True}, {"base": DEMO / "model"}])
def test_norms_that_became_others_are_refused(workshop: Workshop, tmp_path: Path, options: dict[str, object]) -> None:
    artifact = workshop.tiny("opt", "w4a16", "weights.group_size=16")
    with pytest.raises(InputError, match=r"opt's LayerNorms have become RMSNorms.*\(`rotations\.r1\.kind=none`\)"):
        export_artifact(artifact, "dense", tmp_path / "a", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", ["opt", "starcoder2"])
def test_norms_that_stayed_are_exported(family: str, workshop: Workshop, tmp_path: Path) -> None:
    artifact = workshop.tiny(family, "fp16", "rotations.r2.kind=hadamard")
    export_artifact(artifact, "dense", tmp_path / "a")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    torch.testing.assert_close(logits(loaded), logits(make_model(family)), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("format", "options", "words"),
    [
        ("onnx", {}, "unknown format 'onnx': expected one of dense, compressed-tensors, gguf, native"),
        ("dense", {"dtype": "int8"}, "unknown dtype 'int8'"),
        ("gguf", {"dequantized": True}, "no part of gguf"),
        ("compressed-tensors", {"dtype": "float32"}, "`dtype` are no part of compressed-tensors"),
        ("gguf", {"dtype": "float32"}, "`dtype` are no part of gguf"),
        ("native", {"dtype": "bfloat16"}, "`dtype` are no part of native"),
        ("dense", {"dequantized": True, "base": DEMO / "model"}, "expected no `base`"),
    ],
)
def test_options_that_mean_nothing_are_refused(
    workshop: Workshop, tmp_path: Path, format: str, options: dict[str, object], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        export_artifact(workshop.of_demo("w4a16"), format, tmp_path / "a", **options)  # type: ignore[arg-type]


def test_outputs_are_checked(workshop: Workshop, tmp_path: Path) -> None:
    artifact = workshop.of_demo("w4a16")
    with pytest.raises(InputError, match="is the model's folder or inside it"):
        export_artifact(artifact, "dense", artifact, dequantized=True, overwrite=True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("mine")
    with pytest.raises(InputError, match="is not empty"):
        export_artifact(artifact, "dense", tmp_path / "full", dequantized=True)
    with pytest.raises(InputError, match="is a folder: expected a file"):
        export_artifact(workshop.of_demo("gguf"), "gguf", tmp_path / "full")
    (tmp_path / "a.gguf").write_text("mine")
    with pytest.raises(InputError, match=r"a.gguf exists: expected a new file, or `overwrite=True`"):
        export_artifact(workshop.of_demo("gguf"), "gguf", tmp_path / "a.gguf")
    assert (tmp_path / "a.gguf").read_text() == "mine"
    with pytest.raises(InputError, match="is no artifact"):
        export_artifact(DEMO / "model", "dense", tmp_path / "b")
