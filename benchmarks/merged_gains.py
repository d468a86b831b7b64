"""What it costs to merge the gains of norms into the weights behind them, where nothing is rotated.

    python benchmarks/merged_gains.py --test wikitext2-test.txt

SmolLM2-135M-Instruct, its decoder's linears rounded to nearest at 4 bits per channel, the range of each chosen by
squared errors: once as they are, once with the gains merged, which leaves the unrounded model as it was. The KL
divergence from it on the first 2,048 tokens of the text. Writes benchmarks/results/merged_gains.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from smollm2 import CACHE, PACKAGE, fetch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from jointquant.evaluation.divergence import compare
from jointquant.models.architecture import Architecture
from jointquant.models.registry import architecture_of
from jointquant.models.transforms import fuse_norms
from jointquant.quantization.integer import IntFormat
from jointquant.quantization.weights import round_to_nearest
from jointquant.runtime.loading import load_tokenizer
from jointquant.text.sources import load_text
from jointquant.text.tokens import tokenize
from jointquant.text.windows import evaluation_windows
from report import machine

RESULT = Path(__file__).parent / "results" / "merged_gains.json"
TOKENS, SEQLEN = 2048, 256


def main() -> None:
    """Measure both, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=CACHE)
    arguments = parser.parse_args()
    folder = fetch(arguments.cache)
    tokenizer = load_tokenizer(folder)
    tokens = tokenize(tokenizer, load_text(str(arguments.test), "evaluation", None, tokenizer))
    windows = evaluation_windows(tokens[:TOKENS], SEQLEN, arguments.test.name)
    reference = opened(folder)
    rows = {}
    for name, merged in (("gains where they are", False), ("gains merged", True)):
        model = opened(folder)
        round_linears(model, architecture_of("llama"), merged)
        found = compare(logits_of(model), logits_of(reference), windows)[1]
        rows[name] = {"kl": found.mean, "kl_stderr": found.stderr, "top1": found.same_top}
        print(name, rows[name], flush=True)
    result = {"command": "python benchmarks/merged_gains.py …", "model": PACKAGE, "rows": rows, **machine()}
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def opened(folder: Path) -> PreTrainedModel:
    """The model in float32."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval()


def logits_of(model: PreTrainedModel) -> Callable[[Tensor], Tensor]:
    """What a model predicts of token ids [batch, T]."""

    def predict(batch: Tensor) -> Tensor:
        scores: Tensor = model(batch, use_cache=False).logits
        return scores

    return predict


@torch.no_grad()
def round_linears(model: PreTrainedModel, architecture: Architecture, merged: bool) -> None:
    """Each linear of the decoder becomes its rounded self."""
    grid = IntFormat(4, symmetric=True, group_size=None)
    for layer in model.get_submodule(architecture.layers).children():
        if merged:
            fuse_norms(layer, architecture)
        for name in architecture.linears:
            linear = layer.get_submodule(name)
            assert isinstance(linear, nn.Linear)
            linear.weight.copy_(round_to_nearest(linear.weight, grid).dequantize())


if __name__ == "__main__":
    main()
