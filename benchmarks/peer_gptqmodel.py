"""GPTQModel's quantization of one model; runs in an environment that has gptqmodel.

For benchmarks/real_model_peers.py. Weights have 4 bits per channel, symmetric; inputs stay as they are. The model is
saved and loaded again, which gives what its user gets; its kernels take 16 bits, so the weights are unpacked and the
model measured in 32, as every other is. The last line it prints is JSON: seconds to load and quantize (not to save),
peak memory above that of the interpreter with its imports, and perplexity of the model that was loaded again.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from importlib.metadata import version
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # on two cores it takes one, and then refuses to load

import torch
from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
from gptqmodel.nn_modules.qlinear import BaseQuantLinear
from peer_protocol import add_arguments, given_windows, peak_bytes, report
from transformers import AutoTokenizer

METHODS: dict[str, dict[str, Any]] = {
    "defaults": {"act_group_aware": False},
    "act-order": {"desc_act": True, "mse": 2.4},
}
"""By name: as the program comes, less an order of groups, which takes groups; or columns in the order of their inputs'
sizes and scales that were searched."""


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
        loaded = GPTQModel.load(folder, device="cpu", dtype=torch.float16, backend=BACKEND.GPTQ_TORCH)
        again = unpacked(loaded.model.eval())
        result: dict[str, Any] = {
            "seconds": seconds,
            "peak_bytes": peak,
            "versions": {name: version(name) for name in ("gptqmodel", "torch", "transformers")},
        }
        report(arguments, again, test, result)


@torch.no_grad()
def unpacked(model: Any) -> Any:
    """The model with a float32 linear in the place of each packed one. Raises ValueError where there is none."""
    packed = {name: module for name, module in model.named_modules() if isinstance(module, BaseQuantLinear)}
    if not packed:
        raise ValueError("expected a model with packed linears, got none")
    for name, module in packed.items():
        weight = module.dequantize_weight().T.float()  # theirs: [in, out]
        linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=module.bias is not None)
        linear.weight.copy_(weight)
        if module.bias is not None:
            linear.bias.copy_(module.bias)
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, linear)
    return model.float()


if __name__ == "__main__":
    main()
