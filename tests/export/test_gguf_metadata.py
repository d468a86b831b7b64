"""How a GGUF file describes the model, its rotary positions above all."""

from __future__ import annotations

import pytest
import torch
from gguf import GGUFWriter
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from jointquant import InputError
from jointquant.export.gguf_metadata import FAMILIES, add_hyperparameters, interleave, rope_factors


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


def test_yarn_without_its_defaults_is_refused() -> None:
    rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 128}
    for change, words in (({}, None), ({"truncate": False}, "truncate: false"), ({"beta_fast": 16}, "beta_fast")):
        writer, given = GGUFWriter(None, "llama"), LlamaConfig(rope_parameters=rope | change)
        if words is None:
            add_hyperparameters(writer, given, FAMILIES["llama"])
        else:
            with pytest.raises(InputError, match=f"yarn with {words}"):
                add_hyperparameters(writer, given, FAMILIES["llama"])
