"""How long the hidden states of tokens are in SmolLM2-135M-Instruct, layer by layer: the first one beside the others.

    python benchmarks/token_lengths.py TEXT.txt

On 16 windows of 256 tokens of TEXT. Writes benchmarks/results/token_lengths.json: behind each layer the median length
of a token that is not the first of its window, the mean length of those that are, and the share of all squares that
theirs are; the same of what its down projection reads.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from smollm2 import CACHE, PACKAGE, fetch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from report import machine

RESULT = Path(__file__).parent / "results" / "token_lengths.json"
WINDOWS, SEQLEN = 16, 256


def main() -> None:
    """Measure and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--cache", type=Path, default=CACHE)
    arguments = parser.parse_args()
    folder = fetch(arguments.cache)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = AutoTokenizer.from_pretrained(folder)(arguments.text.read_text(encoding="utf-8")[:50_000]).input_ids
    windows = torch.tensor(ids[: WINDOWS * SEQLEN]).view(WINDOWS, SEQLEN)
    states, inputs = observed(model, windows)
    rows = [
        {"layer": layer, "output": lengths(state), "down_in": lengths(read)}
        for layer, (state, read) in enumerate(zip(states, inputs, strict=True))
    ]
    result = {"command": "python benchmarks/token_lengths.py TEXT.txt", **machine(), "model": PACKAGE, "rows": rows}
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result))


@torch.no_grad()
def observed(model: torch.nn.Module, windows: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """What each layer hands on, and what its down projection reads: [windows, tokens, …] each."""
    states: list[Tensor] = []
    inputs: list[Tensor] = []
    for layer in model.get_submodule("model.layers").children():
        layer.register_forward_hook(lambda _module, _inputs, output: states.append(output))
        down = layer.get_submodule("mlp.down_proj")
        down.register_forward_pre_hook(lambda _module, given: inputs.append(given[0]))
    model(windows, use_cache=False)
    return states, inputs


def lengths(states: Tensor) -> dict[str, float]:
    """Of tokens [windows, tokens, n]."""
    norms = states.norm(dim=-1).double()
    return {
        "median_of_others": norms[:, 1:].median().item(),
        "mean_of_first": norms[:, 0].mean().item(),
        "share_of_first": (norms[:, 0].square().sum() / norms.square().sum()).item(),
    }


if __name__ == "__main__":
    main()
