"""Layers that draft, from a checkpoint through an artifact and its exports, in float64 and bit for bit."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from compressed_tensors.utils import match_name
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase
from transformers.utils import logging as their_logging

import jointquant
from conftest import small
from drafting import DEEPSEEK, KINDS, QWEN, Drafting, config_of, draft_logits, drafts_of, save_drafting, without_r1
from jointquant.export.export import export_artifact
from jointquant.models import contents

FAMILIES = pytest.mark.parametrize("family", KINDS)


def apart(one: Tensor, other: Tensor) -> float:
    return ((one - other).abs().max() / other.abs().max()).item()


def check_drafts(found: Path, source: Path, kind: Drafting) -> None:
    """The layer that drafts is that of the source, byte by byte, in names and dtypes."""
    have, want = drafts_of(found, kind), drafts_of(source, kind)
    assert len(want) > 10
    assert have.keys() == want.keys()
    for name, tensor in want.items():
        assert have[name].dtype == tensor.dtype, name
        assert torch.equal(have[name].view(torch.uint8), tensor.view(torch.uint8)), name
    assert config_of(found)[kind.count] == config_of(source)[kind.count] == 1


@FAMILIES
@pytest.mark.parametrize("inner", ["none", "R3, R4 and smoothing"])
def test_without_r1_its_logits_are_those_of_the_source(
    family: str, inner: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    kind = KINDS[family]
    source = save_drafting(tmp_path / "source", kind, tokenizer)
    latent = family == "deepseek_v3"
    turned = ["rotations.r4.kind=hadamard", *([] if latent else ["smoothing.alpha=0.5"])]
    recipe = without_r1("fp16", *small(*(turned if inner != "none" else [])))
    jointquant.quantize(source, tmp_path / "a", recipe, dtype="float64")
    folder = tmp_path / "a"
    if inner == "none":
        export_artifact(folder, "dense", tmp_path / "dense")
        folder = tmp_path / "dense"
    check_drafts(folder, source, kind)
    expected = draft_logits(source, kind)
    assert expected.std() > 0.1
    assert apart(draft_logits(folder, kind), expected) < 1e-10


@FAMILIES
def test_the_gain_of_the_final_norm_matters(family: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """The oracle tells a norm whose gain has gone into the head, as norm fusion has it, from one that keeps it."""
    kind = KINDS[family]
    source, fused = (save_drafting(tmp_path / name, kind, tokenizer) for name in ("source", "fused"))
    tensors = load_file(fused / "model.safetensors")
    gain = kind.offset + tensors["model.norm.weight"]
    tensors["lm_head.weight"] = tensors["lm_head.weight"] * gain
    tensors["model.norm.weight"] = torch.full_like(gain, 1 - kind.offset)
    save_file(tensors, fused / "model.safetensors", {"format": "pt"})
    assert apart(draft_logits(fused, kind), draft_logits(source, kind)) > 1e-2


@FAMILIES
def test_tied_ends_stay_one_matrix(family: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """A tied model's artifact holds the matrix once; its export both, which are the base model's."""
    kind = KINDS[family]
    if kind.copies:
        pytest.skip("checkpoints of this family are not tied")
    source = save_drafting(tmp_path / "source", kind, tokenizer, tie_word_embeddings=True)
    jointquant.quantize(source, tmp_path / "a", without_r1("fp16", *small()), dtype="float64")
    expected = draft_logits(source, kind)
    assert apart(draft_logits(tmp_path / "a", kind), expected) < 1e-10
    export_artifact(tmp_path / "a", "dense", tmp_path / "dense")
    assert apart(draft_logits(tmp_path / "dense", kind), expected) < 1e-10
    check_drafts(tmp_path / "dense", source, kind)


@FAMILIES
def test_packed_it_stays_in_16_bits(
    family: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase, caplog: pytest.LogCaptureFixture
) -> None:
    """W4A16 in compressed-tensors: kept bit for bit, named in ``ignore``, and loaded without a word by transformers."""
    kind = KINDS[family]
    source = save_drafting(tmp_path / "source", kind, tokenizer, torch.bfloat16)
    recipe = without_r1("rtn", *small("activations.num_bits=16", "kv_cache.num_bits=16", "weights.group_size=8"))
    result = jointquant.quantize(source, tmp_path / "a", recipe)
    assert any(each["name"] == f"{kind.module}.*" for each in result.kept)
    check_drafts(tmp_path / "a", source, kind)
    export_artifact(tmp_path / "a", "compressed-tensors", tmp_path / "packed")
    check_drafts(tmp_path / "packed", source, kind)
    export_artifact(tmp_path / "packed", "native", tmp_path / "back")
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "back" / path.name).read_bytes(), path.name
    export_artifact(tmp_path / "a", "dense", tmp_path / "dense", dequantized=True)
    check_drafts(tmp_path / "dense", source, kind)
    export_artifact(tmp_path / "a", "dense", tmp_path / "rotated", base=source)
    check_drafts(tmp_path / "rotated", source, kind)
    caplog.clear()
    their_logging.enable_propagation()
    try:
        with caplog.at_level(logging.WARNING):
            for name in ("a", "packed", "dense", "rotated"):
                AutoModelForCausalLM.from_pretrained(tmp_path / name)
    finally:
        their_logging.disable_propagation()
    assert "model.layers.61" not in caplog.text
    assert "mtp" not in caplog.text
    assert "UNEXPECTED" not in caplog.text


LINEARS = {
    "deepseek_v3": (
        "eh_proj",
        "shared_head.head",
        "self_attn.q_a_proj",
        "self_attn.fused_qkv_a_proj",
        "self_attn.kv_b_proj",
        "mlp.experts.0.gate_proj",
        "mlp.shared_experts.gate_up_proj",
        "mtp_block.self_attn.o_proj",
    ),
    "qwen3_5_text": ("fc", "layers.0.self_attn.qkv_proj", "layers.0.self_attn.o_proj", "layers.0.mlp.gate_up_proj"),
}
"""Linears of layers that draft, as vLLM names them: several of a checkpoint's are one there."""


@FAMILIES
def test_ignore_names_all_its_linears_and_no_others(
    family: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    kind = KINDS[family]
    source = save_drafting(tmp_path / "source", kind, tokenizer, torch.bfloat16)
    recipe = without_r1("rtn", *small("activations.num_bits=16", "kv_cache.num_bits=16", "weights.group_size=8"))
    jointquant.quantize(source, tmp_path / "a", recipe)
    export_artifact(tmp_path / "a", "compressed-tensors", tmp_path / "packed")
    settings = config_of(tmp_path / "packed")["quantization_config"]
    assert isinstance(settings, dict)

    def ignored(name: str) -> bool:
        return any(match_name(name, each) for each in settings["ignore"])

    for name in (f"{kind.module}.{linear}" for linear in LINEARS[family]):
        assert ignored(name), name
    for name in (name for name in drafts_of(source, kind) if name.endswith("proj.weight")):
        assert ignored(name.removesuffix(".weight")), name
    assert not ignored("model.layers.1.mlp.down_proj")
    assert not ignored("model.layers.6.mlp.down_proj")


@FAMILIES
def test_with_r1_it_is_left_aside_and_a_line_says_what_keeps_it(
    family: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase, caplog: pytest.LogCaptureFixture
) -> None:
    kind = KINDS[family]
    source = save_drafting(tmp_path / "source", kind, tokenizer, torch.bfloat16)
    contents._say.cache_clear()
    recipe = jointquant.load_recipe("fp16", small("rotations.r1.kind=hadamard"))
    with caplog.at_level(logging.WARNING, "jointquant"):
        jointquant.quantize(source, tmp_path / "a", recipe)
    assert "rotations.r1.kind=none" in caplog.text
    assert drafts_of(tmp_path / "a", kind) == {}
    settings = config_of(tmp_path / "a")["quantization_config"]
    assert isinstance(settings, dict)
    assert [each.partition(" ")[0] for each in settings["left_aside"]] == [kind.module]
    assert "drafts" not in settings


@pytest.mark.parametrize("kind", [DEEPSEEK, QWEN], ids=lambda kind: kind.family)
def test_a_quantized_head_beside_it_is_named(
    kind: Drafting, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    source = save_drafting(tmp_path / "source", kind, tokenizer, torch.bfloat16)
    result = jointquant.quantize(source, tmp_path / "a", without_r1("fp16", *small("head.num_bits=4")))
    (why,) = (each["why"] for each in result.kept if each["name"] == f"{kind.module}.*")
    assert "quantized one" in why
    check_drafts(tmp_path / "a", source, kind)
    AutoModelForCausalLM.from_pretrained(tmp_path / "a")
