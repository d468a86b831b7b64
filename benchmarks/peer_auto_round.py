"""auto-round's quantization of one model; runs in an environment that has auto-round.

For ``benchmarks/accuracy.py weights`` and benchmarks/real_model_peers.py. The last line it prints is JSON: perplexity
of the model in memory, seconds to quantize, peak memory above that of the interpreter with its imports, and which
linears of a layer it has quantized: those whose sizes 32 does not divide it leaves as they are.
"""

from __future__ import annotations

import argparse
import os
import time
from importlib.metadata import version
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from auto_round import AutoRound
from peer_protocol import add_arguments, given_windows, peak_bytes, report
from transformers import AutoModelForCausalLM, AutoTokenizer

INPUTS: dict[str, dict[str, Any]] = {
    "w4a16": {},
    "w4a8": {"act_bits": 8, "act_group_size": -1, "act_sym": True, "act_dynamic": True},
    "w4a4": {"act_bits": 4, "act_group_size": -1, "act_sym": False, "act_dynamic": True},
}
"""Weights have 4 bits per channel, symmetric; inputs are per token, dynamic."""


def main() -> None:
    """Quantize, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--scheme", choices=INPUTS, default="w4a16")
    parser.add_argument("--iters", type=int, default=200)
    parser.add_argument("--lr", type=float, help="its own choice, 1 / iters, where none is given")
    parser.add_argument("--seed", type=int, default=42)
    arguments = parser.parse_args()
    before = peak_bytes()
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    rows, test = given_windows(arguments, tokenizer)
    start = time.perf_counter()
    rounding = AutoRound(
        model,
        tokenizer,
        bits=4,
        group_size=-1,
        sym=True,
        iters=arguments.iters,
        lr=arguments.lr,
        seed=arguments.seed,
        seqlen=rows.shape[1],
        nsamples=len(rows),
        dataset=[row.unsqueeze(0) for row in rows],
        batch_size=8,
        device_map="cpu",
        enable_torch_compile=False,
        **INPUTS[arguments.scheme],
    )
    model, layers = rounding.quantize()
    seconds, peak = time.perf_counter() - start, peak_bytes() - before
    model = model.float().eval()
    first = {name.rsplit(".", 1)[1]: settings["bits"] for name, settings in layers.items() if ".layers.0." in name}
    result = {
        "seconds": seconds,
        "peak_bytes": peak,
        "quantized": sorted(name for name, bits in first.items() if bits == 4),
        "left": sorted(name for name, bits in first.items() if bits != 4),
        "versions": {name: version(name) for name in ("auto-round", "torch", "transformers")},
    }
    report(arguments, model, test, result)


if __name__ == "__main__":
    main()
