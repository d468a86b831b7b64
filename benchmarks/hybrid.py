"""Tiny models rotated and not quantized, by llm-compressor's default mapping and by ours: logits before and after.

    python benchmarks/hybrid.py --peer-python PYTHON

PYTHON is an interpreter whose environment has llmcompressor. A Llama, and two hybrids: gated delta nets among layers of
gated attention. Their weights are random, their norms' too; the rows of their embeddings have mean zero, because the
peer subtracts it. R1 and R2, as the peer's default is; R1 alone for the hybrids, which allow no R2. In float32.
Writes benchmarks/results/hybrid.json after every row.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hybrid_distance import distance, logits
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import jointquant
from jointquant.demo.story import CALIBRATION_TEXT
from jointquant.demo.story import MODEL as EMBEDDED
from report import Result

RESULT = Path(__file__).parent / "results" / "hybrid.json"
COMMON = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 2048,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
DELTA_NETS = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
}
MODELS: dict[str, dict[str, Any]] = {"llama": {}, "qwen3_5_text": DELTA_NETS, "qwen3_next": DELTA_NETS | EXPERTS}
"""Three of a hybrid's four layers are gated delta nets. Sizes are powers of two, as the peer's Hadamard matrices."""


@dataclass(frozen=True)
class Tried:
    """A model's family, and what is rotated."""

    family: str
    rotations: tuple[str, ...]


BOTH, ONE = ("R1", "R2"), ("R1",)
ALL = (Tried("llama", BOTH), *(Tried(family, which) for family in MODELS if family != "llama" for which in (BOTH, ONE)))


def main() -> None:
    """Every model, by both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", type=Path, required=True, help="interpreter that has llmcompressor")
    arguments = parser.parse_args()
    tokens = torch.randint(2, 2048, (2, 48), generator=torch.Generator().manual_seed(1)).tolist()
    result = Result(RESULT, "python benchmarks/hybrid.py --peer-python PYTHON", models=MODELS, common=COMMON)
    for tried in ALL:
        with tempfile.TemporaryDirectory() as name:
            model = make(tried.family, Path(name) / "model")
            row = {"family": tried.family, "rotations": list(tried.rotations)}
            result.add({"tool": "llm-compressor", **row, **peer(arguments.peer_python, model, tokens, tried)})
            result.add({"tool": "jointquant", **row, **ours(model, tokens, tried)})


def make(family: str, folder: Path) -> Path:
    """Write a tiny model with random weights, norms included, and the tokenizer of the embedded one."""
    generator = torch.Generator().manual_seed(0)
    config = AutoConfig.for_model(family, **COMMON, **MODELS[family])
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        is_norm = parameter.ndim == 1 and name.endswith("norm.weight")
        parameter.data = parameter.data + 0.3 * noise if is_norm else noise / 5
    embedding: torch.Tensor = model.get_input_embeddings().weight.data
    embedding -= embedding.mean(-1, keepdim=True)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(EMBEDDED).save_pretrained(folder)
    return folder


def peer(python: Path, model: Path, tokens: list[list[int]], tried: Tried) -> dict[str, Any]:
    """llm-compressor, in its own environment."""
    script = Path(__file__).parent / "peer_hybrid.py"
    command = [str(python), str(script), str(model), "--tokens", json.dumps(tokens)]
    done = subprocess.run([*command, "--rotations", *tried.rotations], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{script} failed:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def ours(model: Path, tokens: list[list[int]], tried: Tried) -> dict[str, Any]:
    """Merge the rotations, load the artifact, compare; what the family does not allow is refused."""
    kinds = [f"rotations.{each.lower()}.kind=hadamard" for each in tried.rotations]
    text = {"source": CALIBRATION_TEXT, "num_samples": 2, "seqlen": 32}
    recipe = jointquant.load_recipe("fp16", [*(f"calibration.{key}={value}" for key, value in text.items()), *kinds])
    before = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    with tempfile.TemporaryDirectory() as name:
        try:
            jointquant.quantize(model, Path(name) / "a", recipe, dtype="float32")
        except jointquant.InputError as error:
            return {"refused": str(error)}
        after = AutoModelForCausalLM.from_pretrained(Path(name) / "a", dtype=torch.float32).eval()
        rows = torch.tensor(tokens)
        return distance(logits(before, rows), logits(after, rows))


if __name__ == "__main__":
    main()
