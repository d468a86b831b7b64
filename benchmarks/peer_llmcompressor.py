"""llm-compressor's W4A4 of one model, for benchmarks/quantization.py; runs in an environment that has llmcompressor.

The last line it prints is JSON: seconds to load and quantize (not to save), peak memory above that of the interpreter
with its imports, and perplexity of the model in memory.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import llmcompressor
import torch
import transformers
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import GPTQModifier
from llmcompressor.modifiers.transform import SpinQuantModifier
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM  # noqa: F401  imported lazily otherwise


def main() -> None:
    """Quantize, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--calib", type=Path, required=True)
    parser.add_argument("--test", type=Path)
    parser.add_argument("--method", choices=("gptq", "random-hadamard"), required=True)
    parser.add_argument("--num-samples", type=int, required=True)
    parser.add_argument("--seqlen", type=int, required=True)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    arguments = parser.parse_args()
    before, start = peak_bytes(), time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=getattr(torch, arguments.dtype)).eval()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    rows = windows(tokenizer, arguments.calib, arguments.seqlen)[: arguments.num_samples]
    oneshot(
        model=model,
        recipe=recipe_of(arguments.method),
        dataset=Dataset.from_dict({"input_ids": rows.tolist(), "attention_mask": torch.ones_like(rows).tolist()}),
        max_seq_length=arguments.seqlen,
        num_calibration_samples=len(rows),
        pipeline="sequential",
    )
    result: dict[str, Any] = {
        "seconds": time.perf_counter() - start,
        "peak_bytes": peak_bytes() - before,
        "versions": {name.__name__: name.__version__ for name in (llmcompressor, torch, transformers)},
    }
    if arguments.test is not None:
        result["perplexity"] = perplexity(model, windows(tokenizer, arguments.test, arguments.seqlen))
    print(json.dumps(result))


def recipe_of(method: str) -> list[Any]:
    """W4 per channel, symmetric, clipped by MSE; A4 per token, asymmetric, dynamic; the head is left alone."""
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "channel", "observer": "mse"}
    inputs = {"num_bits": 4, "type": "int", "symmetric": False, "strategy": "token", "dynamic": True}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    rounding = GPTQModifier(config_groups={"all": group}, ignore=["lm_head"])
    if method == "gptq":
        return [rounding]
    return [SpinQuantModifier(transform_type=method, rotations=["R1", "R2", "R4"]), rounding]


def windows(tokenizer: Any, text: Path, seqlen: int) -> torch.Tensor:
    """A text's windows that do not overlap: [n, seqlen]."""
    tokens = torch.tensor(tokenizer(text.read_text(encoding="utf-8")).input_ids)
    return tokens[: len(tokens) // seqlen * seqlen].view(-1, seqlen)


@torch.no_grad()
def perplexity(model: Any, rows: torch.Tensor) -> float:
    """exp of the mean negative log-likelihood of seqlen − 1 predictions a window."""
    total = sum(model(batch, labels=batch, use_cache=False).loss.item() * len(batch) for batch in rows.split(8))
    return math.exp(total / len(rows))


def peak_bytes() -> int:
    """The process's peak resident memory; getrusage would begin with that of the process that started this one."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
