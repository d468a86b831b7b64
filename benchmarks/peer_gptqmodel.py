"""GPTQModel's quantization of one model; runs in an environment that has gptqmodel.

For benchmarks/real_model_peers.py. Weights have 4 bits per channel, symmetric; inputs stay as they are. The model is
saved and loaded again, since GPTQModel packs what it has quantized only then. The last line it prints is JSON: seconds
to load and quantize (not to save), peak memory above that of the interpreter with its imports, and perplexity of the
model that was loaded again.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from importlib.metadata import version
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
from kept_logits import write_logits
from peer_protocol import add_arguments, given_windows, peak_bytes, perplexity
from transformers import AutoTokenizer

METHODS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "act-order": {"desc_act": True, "mse": 2.4},
}
"""By name: as the program comes, or with columns by the size of their inputs and scales that were searched."""


def main() -> None:
    """Quantize, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--method", choices=METHODS, default="defaults")
    arguments = parser.parse_args()
    before, start = peak_bytes(), time.perf_counter()
    settings = QuantizeConfig(bits=4, group_size=-1, sym=True, **METHODS[arguments.method])
    model = GPTQModel.load(arguments.model, settings, device="cpu", dtype=torch.float32)
    rows, test = given_windows(arguments, AutoTokenizer.from_pretrained(arguments.model))
    ones = torch.ones_like(rows[0]).tolist()
    model.quantize([{"input_ids": row.tolist(), "attention_mask": ones} for row in rows], batch_size=8)
    seconds, peak = time.perf_counter() - start, peak_bytes() - before
    with tempfile.TemporaryDirectory() as folder:
        model.save(folder)
        loaded = GPTQModel.load(folder, device="cpu", dtype=torch.float32, backend=BACKEND.GPTQ_TORCH)
        again = loaded.model.eval()
        result: dict[str, Any] = {
            "seconds": seconds,
            "peak_bytes": peak,
            "versions": {name: version(name) for name in ("gptqmodel", "torch", "transformers")},
        }
        if test is not None:
            result["perplexity"] = perplexity(again, test)
        if arguments.logits is not None:
            write_logits(again, test, arguments.logits)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
