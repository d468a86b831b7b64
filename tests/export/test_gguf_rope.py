"""Rotary positions as a GGUF file has them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gguf import GGUFWriter
from transformers import LlamaConfig, Phi3Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from jointquant import InputError
from jointquant.export.gguf_families import LLAMA_ROPE, PLAIN
from jointquant.export.gguf_rope import add_rope, interleave, longrope_attention_factor, rope_factors, rope_tensors

YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 128}
LONG = {"rope_type": "longrope", "rope_theta": 1e4, "long_factor": [1.5, 2.0], "short_factor": [1.0, 1.1]}


def test_rotary_pairs_become_neighbours() -> None:
    """Two heads of four: each head's halves [0 1 | 2 3] are dealt in turn."""
    rows = torch.arange(8)[:, None].expand(8, 3)
    assert interleave(rows, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_stretched_positions_are_those_of_transformers() -> None:
    rope = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    config = LlamaConfig(hidden_size=2048, num_attention_heads=32, head_dim=64, rope_parameters=rope)
    inverse, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 500000.0 ** (-torch.arange(0, 64, 2, dtype=torch.float64) / 64)
    factors = rope_factors(config)
    assert factors is not None
    torch.testing.assert_close((plain / factors).float(), inverse, rtol=1e-5, atol=0)


@pytest.mark.parametrize("change", [{}, {"factor": 8.0}, {"attention_factor": 1.25}])
def test_longrope_is_that_of_transformers(change: dict[str, float]) -> None:
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "max_position_embeddings": 512, "pad_token_id": 0}
    rope = LONG | {"partial_rotary_factor": 0.5} | change
    config = Phi3Config(**sizes, original_max_position_embeddings=64, rope_parameters=rope)
    inverse, factor = ROPE_INIT_FUNCTIONS["longrope"](config, torch.device("cpu"), seq_len=100)
    assert longrope_attention_factor(config) == pytest.approx(factor)
    tensors = rope_tensors(config)
    plain = 1e4 ** (-torch.arange(0, 4, 2, dtype=torch.float64) / 4)
    torch.testing.assert_close((plain / tensors["rope_factors_long.weight"]).float(), inverse, rtol=1e-5, atol=0)
    assert tensors["rope_factors_short.weight"].tolist() == pytest.approx(LONG["short_factor"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, None),
        ({"beta_fast": 32.0, "beta_slow": 1.0, "attention_factor": 1.1386294361}, None),
        ({"truncate": False}, "truncate: false"),
        ({"beta_fast": 16.0}, "beta_fast"),
        ({"mscale": 1.0}, "mscale"),
        ({"attention_factor": 1.0}, "attention_factor"),
    ],
)
def test_yarn_without_its_defaults_is_refused(change: dict[str, object], words: str | None, tmp_path: Path) -> None:
    writer, given = GGUFWriter(tmp_path / "a", "llama"), LlamaConfig(rope_parameters=YARN | change)
    if words is None:
        add_rope(writer, given, PLAIN)
    else:
        with pytest.raises(InputError, match=f"yarn with {words}"):
            add_rope(writer, given, PLAIN)


def test_a_rope_that_llama_cpp_does_not_compute_is_refused(tmp_path: Path) -> None:
    config = LlamaConfig(
        rope_parameters=YARN | {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    )
    add_rope(GGUFWriter(tmp_path / "a", "llama"), config, LLAMA_ROPE)
    with pytest.raises(InputError, match=r"no GGUF export of rope_type 'llama3' .* expected default or linear or yarn"):
        add_rope(GGUFWriter(tmp_path / "b", "qwen2"), config, PLAIN)
