"""Tokens a second behind a long context, of W4A4KV4 and of the bfloat16 model, by turns in one process.

    python benchmarks/long_context.py [--contexts 1024 4096 8192] [--steps 16] [--repetitions 5]

SmolLM2-135M-Instruct (``benchmarks/smollm2.py`` fetches it), which knows 8,192 positions. The weights are rounded to
nearest, head and embedding in 4 bits (``benchmarks/resident.py``), for how well does not matter here. The cache is
filled with random keys and values; the single tokens behind it run through the whole model. Writes
benchmarks/results/long_context.json.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from resident import ONLINE, made
from smollm2 import CACHE, fetch
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

import jointquant
from jointquant.runtime.cache import PackedCache
from report import machine

RESULT = Path(__file__).parent / "results" / "long_context.json"


def main() -> None:
    """Measure each context."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contexts", type=int, nargs="+", default=[1024, 4096, 8192])
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--repetitions", type=int, default=5)
    arguments = parser.parse_args()
    model, load = fetch(CACHE), os.getloadavg()
    with tempfile.TemporaryDirectory() as name:
        packed = jointquant.load(made(model, Path(name) / "artifact", ONLINE), dtype="bfloat16")
        plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
        rows = [row(packed, plain, context, arguments) for context in arguments.contexts]
    result = {
        "command": "python benchmarks/long_context.py",
        "steps": arguments.steps,
        "repetitions": arguments.repetitions,
        "load_average": load,
        "rows": rows,
        **machine(),
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def row(packed: PreTrainedModel, plain: PreTrainedModel, context: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Both models behind one context."""
    caches = filled(PackedCache(packed), packed, context), filled(DynamicCache(config=plain.config), plain, context)
    bytes_of = caches[0].nbytes(), sum(t.nbytes for layer in caches[1].layers for t in (layer.keys, layer.values))
    pairs = list(zip((packed, plain), caches, strict=True))
    for model, cache in pairs:
        seconds_a_token(model, cache, 1)
    turns = [[seconds_a_token(*pair, arguments.steps) for pair in pairs] for _ in range(arguments.repetitions)]
    ratios = [theirs / ours for ours, theirs in turns]
    found = {
        "context": context,
        "decode_ratio": median(ratios),
        "decode_ratio_min": min(ratios),
        "decode_ratio_max": max(ratios),
        "tokens_per_second": 1 / median(ours for ours, _ in turns),
        "tokens_per_second_bf16": 1 / median(theirs for _, theirs in turns),
        "cache_bytes": bytes_of[0],
        "cache_bytes_bf16": bytes_of[1],
    }
    print(found, flush=True)
    return found


@torch.inference_mode()
def filled(cache: DynamicCache, model: PreTrainedModel, context: int) -> DynamicCache:
    """The cache, with so many tokens in every layer."""
    config, generator = model.config, torch.Generator().manual_seed(0)
    shape = 2, 1, config.num_key_value_heads, context, config.hidden_size // config.num_attention_heads
    for layer in range(config.num_hidden_layers):
        keys, values = torch.randn(shape, generator=generator).to(torch.bfloat16)
        cache.update(keys, values, layer)
    return cache


@torch.inference_mode()
def seconds_a_token(model: PreTrainedModel, cache: DynamicCache, steps: int) -> float:
    """Of single tokens behind what the cache holds; they are taken off again."""
    start = time.perf_counter()
    for step in range(steps):
        model(torch.tensor([[step * 37 % 2000]]), past_key_values=cache)
    seconds = (time.perf_counter() - start) / steps
    cache.crop(-steps)
    return seconds


if __name__ == "__main__":
    main()
