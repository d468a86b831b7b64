"""llm-compressor's rotations of one model by its default mapping; runs in an environment that has llmcompressor.

For benchmarks/hybrid.py. Nothing is quantized. The last line it prints is JSON: how far logits are from those before
(see ``distance``), or the error that it was refused with.
"""

from __future__ import annotations

import argparse
import json
import os
import traceback
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import llmcompressor
import torch
import transformers
from hybrid_distance import distance, logits
from llmcompressor import oneshot
from llmcompressor.modifiers.transform import SpinQuantModifier
from transformers import AutoModelForCausalLM, LlamaForCausalLM  # noqa: F401  imported lazily otherwise


def main() -> None:
    """Rotate, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=json.loads, required=True, help="rows of token ids")
    parser.add_argument("--rotations", nargs="+", default=["R1", "R2"])
    arguments = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
    tokens = torch.tensor(arguments.tokens)
    versions = {name.__name__: name.__version__ for name in (llmcompressor, torch, transformers)}
    before = logits(model, tokens)
    try:
        oneshot(model=model, recipe=[SpinQuantModifier(rotations=arguments.rotations)])
        after = logits(model, tokens)
    except Exception as error:  # the answer is that it was refused, and how
        last = traceback.extract_tb(error.__traceback__)[-1]
        said = " ".join(str(error).split())[:300] or "no words"
        why = f"{type(error).__name__} ({said}), at `{last.line}` in {Path(last.filename).name}"
        print(json.dumps({"refused": why, "versions": versions}))
        return
    print(json.dumps({**distance(before, after), "versions": versions}))


if __name__ == "__main__":
    main()
