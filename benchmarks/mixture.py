"""A small mixture of experts: the presets at W4A4KV4 on it, and what experts that see few tokens should be given.

    python benchmarks/mixture.py train MODEL
    python benchmarks/mixture.py presets MODEL
    python benchmarks/mixture.py starved MODEL

``train`` trains a Qwen 3 mixture (8 experts, 2 of them a token) on the text that the embedded model was trained on,
with its tokenizer, and turns its residual stream onto its principal axes, as the embedded model's is; the folder
MODEL is what it writes. ``presets`` measures each preset on the reloaded artifacts, and whether two loads agree.
``starved`` calibrates on few windows, and gives the experts that too few tokens reach: rounding to nearest, their own
few tokens, or all tokens of their layer. Writes benchmarks/results/mixture.json, a part at a time.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3MoeConfig, Qwen3MoeForCausalLM
from turned import turned_onto_principal_axes

import jointquant
from jointquant.activations import routing
from jointquant.demo import corpus, train
from jointquant.demo.story import CALIBRATION_TEXT, HELDOUT_TEXT
from jointquant.demo.story import MODEL as EMBEDDED
from report import machine

RESULT = Path(__file__).parent / "results" / "mixture.json"
CONFIG: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "moe_intermediate_size": 128,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "decoder_sparse_step": 1,
    "tie_word_embeddings": True,
}
STEPS, WINDOWS, FEW_WINDOWS = 500, 64, (1, 2)
PRESETS = {"fp16": 1, "rtn": 1, "gptq": 3, "quarot": 3, "dartquant": 3, "w4a4kv4": 3}
"""How many seeds; nothing in the first two depends on the seed."""
WITHOUT_LEARNING = ("refinement.steps=0",)


def main() -> None:
    """Train the model, or measure a part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=tuple(PARTS))
    parser.add_argument("model", type=Path)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--only", nargs="+", default=tuple(PRESETS), help="presets to measure again")
    parser.add_argument("--minutes", type=float, default=10.0, help="training ends earlier, its schedule with it")
    arguments = parser.parse_args()
    PARTS[arguments.part](arguments)


def train_model(arguments: argparse.Namespace) -> None:
    """Train the mixture and turn it."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
    parts = corpus.split(corpus.python_documents(), train.TEXT_CHARACTERS, 0)
    ids = train.encode(tokenizer, corpus.join(parts.train))
    heldout = train.encode(tokenizer, HELDOUT_TEXT.read_text())
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = Qwen3MoeConfig(vocab_size=train.VOCABULARY, **special, **CONFIG)
    model: Any = Qwen3MoeForCausalLM(config)
    model.set_experts_implementation("eager")
    given = {"out": arguments.model, "steps": arguments.steps, "minutes": arguments.minutes}
    options = train.parse([word for name, value in given.items() for word in (f"--{name}", str(value))])
    train.fit(model, ids, heldout[: 64 * train.WINDOW], options)
    with tempfile.TemporaryDirectory() as name:
        train.save(model, tokenizer, Path(name) / "trained")
        turned = turned_onto_principal_axes(Path(name) / "trained", CALIBRATION_TEXT, Path(name) / "turned")
        shutil.copytree(turned, arguments.model, dirs_exist_ok=True)
    measured = jointquant.evaluate(arguments.model, (str(HELDOUT_TEXT),), seqlen=train.WINDOW)
    print(f"written to {arguments.model}: {measured.perplexity}")


def settings(preset: str, windows: int, seed: int, *changes: str) -> jointquant.Recipe:
    """A preset on the embedded calibration text, weights per channel."""
    chosen = {"source": CALIBRATION_TEXT, "num_samples": windows, "seqlen": 256, "seed": seed}
    return jointquant.load_recipe(preset, [*(f"calibration.{key}={value}" for key, value in chosen.items()), *changes])


def perplexity(folder: Path) -> float:
    """On the held-out text."""
    return jointquant.evaluate(folder, (str(HELDOUT_TEXT),), seqlen=256).perplexity[str(HELDOUT_TEXT)]


def spread(values: list[float]) -> dict[str, Any]:
    """Mean, least, largest, and how many there are."""
    return {"mean": mean(values), "min": min(values), "max": max(values), "seeds": len(values)}


def presets(arguments: argparse.Namespace) -> None:
    """Every preset over its seeds."""
    before = json.loads(RESULT.read_text())["presets"]["rows"] if RESULT.exists() else []
    rows = [row for row in before if row["recipe"] not in arguments.only]
    with tempfile.TemporaryDirectory() as name:
        out = Path(name) / "artifact"
        for preset, seeds in ((preset, PRESETS[preset]) for preset in arguments.only):
            results, values = [], []
            for seed in range(seeds):
                recipe = settings(preset, WINDOWS, seed)
                results.append(jointquant.quantize(arguments.model, out, recipe, overwrite=True))
                values.append(perplexity(out))
                print(preset, seed, values[-1], len(results[-1].starved_experts), flush=True)
            same = reloads(out)
            about = {"recipe": preset, "bits": results[0].bits_per_weight, "seconds": mean(r.seconds for r in results)}
            kept = sum(each["parameters"] for each in results[0].kept)
            about |= {"quantized_weights": results[0].quantized_weights, "kept": kept, "reloads": same}
            rows.append(about | spread(values) | {"starved": len(results[0].starved_experts)})
            print(rows[-1], flush=True)
            rows.sort(key=lambda row: list(PRESETS).index(row["recipe"]))
            write(presets={"fp": perplexity(arguments.model), "rows": rows})


def reloads(artifact: Path) -> bool:
    """Whether two loads of an artifact give the same logits, and one of them generates."""
    tokenizer = AutoTokenizer.from_pretrained(artifact)
    ids = tokenizer("def read(path):\n", return_tensors="pt").input_ids
    first, second = (AutoModelForCausalLM.from_pretrained(artifact) for _ in range(2))
    with torch.no_grad():
        same = torch.equal(first(input_ids=ids).logits, second(input_ids=ids).logits)
    text = first.generate(ids, max_new_tokens=8, min_new_tokens=8, do_sample=False)
    return same and text.shape[1] == ids.shape[1] + 8


def starved(arguments: argparse.Namespace) -> None:
    """Few windows, and three things to do for experts that few tokens reach."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        out = Path(name) / "artifact"
        for windows in FEW_WINDOWS:
            for fallback, way in WAYS.items():
                values, counts = [], []
                for seed in range(3):
                    recipe = settings("quarot", windows, seed, *WITHOUT_LEARNING)
                    with way():
                        result = jointquant.quantize(arguments.model, out, recipe, overwrite=True)
                    values.append(perplexity(out))
                    counts.append(len(result.starved_experts))
                rows.append({"windows": windows, "experts given": fallback, "starved": mean(counts)} | spread(values))
                print(rows[-1], flush=True)
        write(starved={"rows": rows, "experts": CONFIG["num_experts"] * CONFIG["num_hidden_layers"]})


@contextmanager
def all_tokens() -> Iterator[None]:
    """What the package does."""
    yield


@contextmanager
def own_tokens() -> Iterator[None]:
    """Only an expert that no token reaches at all reads those of its layer."""
    fewest, routing.FEWEST = routing.FEWEST, 1e-9
    yield
    routing.FEWEST = fewest


@contextmanager
def to_nearest() -> Iterator[None]:
    """Starved experts are rounded to nearest: a Hessian that is a multiple of the identity gives that."""
    from jointquant.quantization import gptq

    update, of_all = gptq.HessianSum.update, gptq.HessianSum.hessian
    few = CONFIG["hidden_size"] * routing.FEWEST
    fewest, routing.FEWEST = routing.FEWEST, 1e-9

    def hessian(self: gptq.HessianSum) -> torch.Tensor:
        return torch.eye(len(self.total)) if self.num_tokens < few else of_all(self)

    gptq.HessianSum.hessian = hessian  # type: ignore[method-assign]
    yield
    gptq.HessianSum.hessian, gptq.HessianSum.update = of_all, update  # type: ignore[method-assign]
    routing.FEWEST = fewest


WAYS = {"rounding to nearest": to_nearest, "their own tokens": own_tokens, "all tokens": all_tokens}


def write(**part: Any) -> None:
    """Put a part into the result file."""
    before = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    about = {"command": "python benchmarks/mixture.py … MODEL", **machine(), "config": CONFIG}
    (name, value), *_ = part.items()
    assert all(math.isfinite(row["mean"]) for row in value["rows"])
    RESULT.write_text(json.dumps(before | about | {name: value}, indent=1) + "\n")


PARTS = {"train": train_model, "presets": presets, "starved": starved}

if __name__ == "__main__":
    main()
