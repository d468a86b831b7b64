"""llm-compressor's quantization of one model; runs in an environment that has llmcompressor.

For benchmarks/quantization.py and benchmarks/real_model_peers.py. The last line it prints is JSON: seconds to load and
quantize (not to save), peak memory above that of the interpreter with its imports, and perplexity of the model in
memory.
"""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import llmcompressor
import torch
import transformers
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import GPTQModifier
from llmcompressor.modifiers.transform import SmoothQuantModifier, SpinQuantModifier
from peer_protocol import add_arguments, given_windows, peak_bytes, report
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM  # noqa: F401  imported lazily otherwise

INT = {"type": "int", "symmetric": True}
INPUTS = {"strategy": "token", "dynamic": True}
WEIGHTS = {bits: {**INT, "num_bits": bits, "strategy": "channel", "observer": "mse"} for bits in (4, 8)}
A4 = {**INT, **INPUTS, "num_bits": 4, "symmetric": False}
A8 = {**INT, **INPUTS, "num_bits": 8}
SCHEMES: dict[str, dict[str, Any]] = {
    "w4a4": {"weights": WEIGHTS[4], "input_activations": A4},
    "w4a8": {"weights": WEIGHTS[4], "input_activations": A8},
    "w4a16": {"weights": WEIGHTS[4]},
    "w8a8": {"weights": WEIGHTS[8], "input_activations": A8},
}
"""Weights per channel, symmetric, clipped by MSE; inputs per token, dynamic."""

BEFORE = {
    "gptq": lambda: [],
    "random-hadamard": lambda: [SpinQuantModifier(transform_type="random-hadamard", rotations=["R1", "R2", "R4"])],
    "smoothquant": lambda: [SmoothQuantModifier(smoothing_strength=0.8)],
}
"""By method: what is done to the model before GPTQ rounds it."""


def main() -> None:
    """Quantize, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--method", choices=BEFORE, required=True)
    parser.add_argument("--scheme", choices=SCHEMES, default="w4a4")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    arguments = parser.parse_args()
    before, start = peak_bytes(), time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=getattr(torch, arguments.dtype)).eval()
    rows, test = given_windows(arguments, AutoTokenizer.from_pretrained(arguments.model))
    group = {"targets": ["Linear"], **SCHEMES[arguments.scheme]}
    oneshot(
        model=model,
        recipe=[*BEFORE[arguments.method](), GPTQModifier(config_groups={"all": group}, ignore=["lm_head"])],
        dataset=Dataset.from_dict({"input_ids": rows.tolist(), "attention_mask": torch.ones_like(rows).tolist()}),
        max_seq_length=rows.shape[1],
        num_calibration_samples=len(rows),
        pipeline="sequential",
    )
    result: dict[str, Any] = {
        "seconds": time.perf_counter() - start,
        "peak_bytes": peak_bytes() - before,
        "versions": {name.__name__: name.__version__ for name in (llmcompressor, torch, transformers)},
    }
    report(arguments, model, test, result)


if __name__ == "__main__":
    main()
