"""What llama.cpp's architectures do not compute is refused; what they do is run in test_llama_cpp.py."""

from __future__ import annotations

import pytest
from gguf import GGUFWriter

from conftest import make_model
from jointquant import InputError
from jointquant.export.gguf_families import FAMILIES, period_of
from jointquant.export.gguf_metadata import add_hyperparameters
from jointquant.models.support import GGUF_FAMILIES, GGUF_TIED


def test_the_table_of_support_has_the_same_families() -> None:
    assert set(FAMILIES) == set(GGUF_FAMILIES)
    assert {name for name, family in FAMILIES.items() if family.tied} == set(GGUF_TIED)


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("exaone4", {}, "sliding windows"),
        ("glm", {"head_dim": 16}, "attention that is 64 wide in this family: expected the hidden size, 48"),
        ("gemma2", {"query_pre_attn_scalar": 24}, "query_pre_attn_scalar 24: llama.cpp computes with 20"),
        ("gemma2", {"query_pre_attn_scalar": 20, "layer_types": ["full_attention"] + ["sliding_attention"] * 2}, "nth"),
        ("gemma3_text", {"final_logit_softcapping": 5.0}, "capped scores or logits"),
        ("qwen2_moe", {}, "mixture with dense layers"),
        ("qwen2_moe", {"mlp_only_layers": [], "norm_topk_prob": True}, "norm_topk_prob True: llama.cpp computes False"),
        ("qwen3_moe", {"decoder_sparse_step": 1, "norm_topk_prob": False}, "norm_topk_prob False"),
        ("smollm3", {}, "no_rope_layers"),
    ],
)
def test_what_llama_cpp_does_not_compute_is_refused(family: str, changes: dict[str, object], words: str) -> None:
    config = make_model(family, **changes).config  # type: ignore[arg-type]
    with pytest.raises(InputError, match=words):
        add_hyperparameters(GGUFWriter(None, "llama"), config, FAMILIES[family])


def test_gemma_2_without_caps_is_refused() -> None:
    config = make_model("gemma2", query_pre_attn_scalar=20).config
    config.attn_logit_softcapping = None
    with pytest.raises(InputError, match="without a cap"):
        add_hyperparameters(GGUFWriter(None, "gemma2"), config, FAMILIES["gemma2"])


@pytest.mark.parametrize(
    ("layers", "period"),
    [("SFS", 2), ("SSSSSF", 6), ("SSS", 0), ("FFF", 1), ("FSF", None), ("SFF", None), ("SSFSSFS", 3)],
)
def test_the_period_of_full_attention(layers: str, period: int | None) -> None:
    kinds = {"S": "sliding_attention", "F": "full_attention"}
    assert period_of([kinds[kind] for kind in layers]) == period
