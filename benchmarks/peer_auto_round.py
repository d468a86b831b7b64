"""auto-round's W4A16 of one model, for ``benchmarks/accuracy.py weights``; runs in an environment that has auto-round.

The last line it prints is JSON: perplexity of the model in memory, seconds, and which linears of a layer it has
quantized: those whose sizes 32 does not divide it leaves as they are.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from importlib.metadata import version
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from auto_round import AutoRound
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    """Quantize, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--calib", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--num-samples", type=int, default=64)
    parser.add_argument("--seqlen", type=int, default=256)
    parser.add_argument("--iters", type=int, default=200)
    parser.add_argument("--seed", type=int, default=42)
    arguments = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    rows, test = (windows(tokenizer, text, arguments.seqlen) for text in (arguments.calib, arguments.test))
    start = time.perf_counter()
    rounding = AutoRound(
        model,
        tokenizer,
        bits=4,
        group_size=-1,
        sym=True,
        iters=arguments.iters,
        seed=arguments.seed,
        seqlen=arguments.seqlen,
        nsamples=arguments.num_samples,
        dataset=[row.unsqueeze(0) for row in rows[: arguments.num_samples]],
        batch_size=8,
        device_map="cpu",
        enable_torch_compile=False,
    )
    model, layers = rounding.quantize()
    seconds = time.perf_counter() - start
    first = {name.rsplit(".", 1)[1]: settings["bits"] for name, settings in layers.items() if ".layers.0." in name}
    print(
        json.dumps(
            {
                "perplexity": perplexity(model.float().eval(), test),
                "seconds": seconds,
                "quantized": sorted(name for name, bits in first.items() if bits == 4),
                "left": sorted(name for name, bits in first.items() if bits != 4),
                "versions": {name: version(name) for name in ("auto-round", "torch", "transformers")},
            }
        )
    )


def windows(tokenizer: object, text: Path, seqlen: int) -> torch.Tensor:
    """A text's windows that do not overlap: [n, seqlen]."""
    tokens = torch.tensor(tokenizer(text.read_text(encoding="utf-8")).input_ids)  # type: ignore[operator]
    return tokens[: len(tokens) // seqlen * seqlen].view(-1, seqlen)


@torch.no_grad()
def perplexity(model: torch.nn.Module, rows: torch.Tensor) -> float:
    """exp of the mean negative log-likelihood of all but each window's first token."""
    total, count = 0.0, 0
    for batch in rows.split(16):
        logits = model(batch).logits[:, :-1].float().log_softmax(-1)
        total -= logits.gather(-1, batch[:, 1:, None]).double().sum().item()
        count += batch[:, 1:].numel()
    return float(torch.tensor(total / count).exp())


if __name__ == "__main__":
    main()
