"""Runs in vLLM's own environment: what its kernel writes into a cache of 4 bits, by Triton's interpreter.

Reads from standard input a JSON list of some keys [tokens, heads, head_dim]; writes to the file that it is given a JSON
list of objects: of each token and head the ``codes``, and the ``bits`` of the float32 that holds step and zero point.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

os.environ |= {"TRITON_INTERPRET": "1", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
sys.modules["jointquant"] = None  # type: ignore[assignment]

import torch
import triton
import triton.language
from vllm import triton_utils

triton_utils.triton, triton_utils.tl = triton, triton.language  # which vLLM leaves out where there is no GPU

from vllm.v1.attention.ops.int4_per_token_head import reshape_and_cache_int4

BLOCK = 16


def written(keys: torch.Tensor) -> dict[str, list[object]]:
    """What the cache holds of keys [tokens, heads, head_dim]."""
    tokens, heads, size = keys.shape
    blocks = -(-tokens // BLOCK)
    cache = torch.zeros(blocks, BLOCK, heads, size // 2, dtype=torch.uint8)
    scale = torch.zeros(blocks, BLOCK, heads)
    kept = {"k_scale_cache": scale, "v_scale_cache": scale.clone()}
    reshape_and_cache_int4(keys, keys, cache, cache.clone(), torch.arange(tokens), **kept)
    pairs = cache.flatten(0, 1)[:tokens]
    codes = torch.stack([pairs & 15, pairs >> 4], -1).flatten(-2)
    bits = scale.flatten(0, 1)[:tokens].contiguous().view(torch.int32)
    return {"codes": codes.tolist(), "bits": bits.tolist()}


def main(out: Path) -> None:
    out.write_text(json.dumps([written(torch.tensor(keys)) for keys in json.load(sys.stdin)]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
