"""Small models of several kinds, trained in minutes: whether the methods come in the order that they have on Llamas.

    python benchmarks/trained.py train KIND MODEL
    python benchmarks/trained.py measure KIND MODEL [--seeds 3]

KIND is a row of ``KINDS``. ``train`` trains it on the text of the embedded model, with its tokenizer, by the same
script; the folder MODEL is what it writes. ``measure`` quantizes it to W4A4KV4 per channel on 64 windows of 256 tokens
and measures the reloaded artifacts on the held-out text, beside the unquantized model, over seeds. Writes
benchmarks/results/trained_KIND.json after every row.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import jointquant
from jointquant.demo import corpus, train
from jointquant.demo.story import CALIBRATION_TEXT, HELDOUT_TEXT
from jointquant.demo.story import MODEL as EMBEDDED
from report import machine

RESULTS = Path(__file__).parent / "results"
WINDOWS = 64
WIDTHS = ("weights.group_size=null", "activations.num_bits=4", "kv_cache.num_bits=4")


@dataclass(frozen=True)
class Kind:
    """A family's configuration, what is changed of every preset because the family allows no other, and its rows.

    A row is named after its preset, and behind a comma after what else is changed of it.
    """

    model_type: str
    config: dict[str, Any]
    changes: tuple[str, ...] = ()
    presets: dict[str, tuple[str, ...]] = field(default_factory=lambda: dict(PRESETS))


PRESETS: dict[str, tuple[str, ...]] = {"rtn": (), "quarot": (), "dartquant": (), "w4a4kv4": ()}
RELATIVE = "refinement.distance=relative"
MENDS = {
    "dartquant, 200 windows": ("calibration.num_samples=200",),
    "w4a4kv4, relative": (RELATIVE,),
    "w4a4kv4, 128 windows": ("calibration.num_samples=128",),
    "w4a4kv4, relative, 200 windows, 150 steps": (RELATIVE, "calibration.num_samples=200", "refinement.steps=150"),
    "w4a4kv4, relative, 200 windows, 300 steps": (RELATIVE, "calibration.num_samples=200", "refinement.steps=300"),
}
"""Tried where w4a4kv4 stood at 0.61 of dartquant's divergence."""
OF_LATENTS = ("rotations.r3.kind=hadamard", "kv_cache.centring=none", "kv_cache.balancing=none")
COMMON = {"max_position_embeddings": 512, "tie_word_embeddings": True}
KINDS = {
    "qwen2": Kind(
        "qwen2",
        {
            "hidden_size": 224,
            "intermediate_size": 608,
            "num_hidden_layers": 6,
            "num_attention_heads": 7,
            "num_key_value_heads": 1,
        },
        presets=PRESETS | MENDS,
    ),
    "gemma3": Kind(
        "gemma3_text",
        {
            "hidden_size": 192,
            "intermediate_size": 512,
            "num_hidden_layers": 6,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "sliding_window": 128,
            "query_pre_attn_scalar": 32,
        },
        ("rotations.r1.kind=none",),
    ),
    "hybrid": Kind(
        "qwen3_5_text",
        {
            "hidden_size": 192,
            "intermediate_size": 512,
            "num_hidden_layers": 8,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "linear_num_key_heads": 4,
            "linear_num_value_heads": 8,
            "linear_key_head_dim": 32,
            "linear_value_head_dim": 32,
        },
        ("rotations.r2.kind=none",),
        PRESETS | {"w4a4kv4": ("kv_cache.centring=keys",)},
    ),
    "latents": Kind(
        "deepseek_v3",
        {
            "hidden_size": 192,
            "intermediate_size": 512,
            "num_hidden_layers": 6,
            "num_attention_heads": 6,
            "num_key_value_heads": 6,
            "q_lora_rank": 96,
            "kv_lora_rank": 64,
            "qk_nope_head_dim": 32,
            "qk_rope_head_dim": 16,
            "v_head_dim": 32,
            "n_routed_experts": 8,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "moe_intermediate_size": 128,
            "first_k_dense_replace": 1,
        },
        presets=PRESETS | {"w4a4kv4": OF_LATENTS},
    ),
}
"""Gemma 3's norms behind each part allow no R1; a gate behind attention allows no R2; a cache of latents has
neither a learned R3 nor centred keys and values (docs/families.md)."""


def main() -> None:
    """Train, or measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("train", "measure"))
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("model", type=Path)
    parser.add_argument("--minutes", type=float, default=15.0, help="training ends then, its schedule with it")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=16, help="windows of a step of training")
    parser.add_argument("--precision", default="bfloat16", help="float32 trains faster on a processor without bfloat16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", help="rows to measure again")
    parser.add_argument("--max-tokens", type=int, help="of the held-out text; all of them where this is not given")
    parser.add_argument("--keep", type=Path, help="a folder for the artifacts, which are deleted where it is not given")
    arguments = parser.parse_args()
    {"train": train_model, "measure": measure}[arguments.part](arguments)


def train_model(arguments: argparse.Namespace) -> None:
    """Train a model of the kind."""
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    kind = KINDS[arguments.kind]
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
    parts = corpus.split(corpus.python_documents(), train.TEXT_CHARACTERS, 0)
    ids = train.encode(tokenizer, corpus.join(parts.train))
    heldout = train.encode(tokenizer, HELDOUT_TEXT.read_text())
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = AutoConfig.for_model(kind.model_type, vocab_size=train.VOCABULARY, **special, **COMMON, **kind.config)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    print(f"{sum(p.numel() for p in model.parameters())} parameters", flush=True)
    given = {"out": arguments.model, "steps": arguments.steps, "minutes": arguments.minutes, "batch": arguments.batch}
    given |= {"precision": arguments.precision, "every": 200}
    options = train.parse([word for name, value in given.items() for word in (f"--{name}", str(value))])
    history = train.fit(model, ids, heldout[: 64 * train.WINDOW], options)
    train.save(model, tokenizer, arguments.model)
    tokens = int(history[-1]["step"]) * arguments.batch * train.WINDOW
    figures = {"steps": history[-1]["step"], "tokens": tokens, "history": history, **machine()}
    (arguments.model / "training.json").write_text(json.dumps(figures, indent=1) + "\n")


def measure(arguments: argparse.Namespace) -> None:
    """Every preset over its seeds."""
    kind, path = KINDS[arguments.kind], RESULTS / f"trained_{arguments.kind}.json"
    result = json.loads(path.read_text()) if path.exists() else {"rows": {}}
    command = f"python benchmarks/trained.py measure {arguments.kind} MODEL --seeds {arguments.seeds}"
    command += f" --threads {arguments.threads}"
    command += "" if arguments.max_tokens is None else f" --max-tokens {arguments.max_tokens}"
    result |= {"command": command, "config": kind.config}
    trained = json.loads((arguments.model / "training.json").read_text())
    result |= {"training": {key: trained[key] for key in ("steps", "tokens")}, "windows": WINDOWS}
    result["unquantized"] = found(arguments.model, arguments)["perplexity"]
    for name in arguments.only or [name for name in kind.presets if name not in result["rows"]]:
        seeds = 1 if name == "rtn" else arguments.seeds
        rows = [quantized(arguments, kind, name, seed) for seed in range(seeds)]
        result["rows"][name] = {
            "changes": [*kind.changes, *kind.presets[name]],
            **{key: {"mean": mean(each), "min": min(each), "max": max(each)} for key, each in columns(rows).items()},
            "seeds": seeds,
            **machine(),
        }
        print(name, result["rows"][name], flush=True)
        path.write_text(json.dumps(result, indent=1) + "\n")


def columns(rows: list[dict[str, float]]) -> dict[str, list[float]]:
    """One list a figure."""
    return {key: [row[key] for row in rows] for key in rows[0]}


def quantized(arguments: argparse.Namespace, kind: Kind, row: str, seed: int) -> dict[str, float]:
    """Quantize at W4A4KV4, reload, measure."""
    chosen = {"source": CALIBRATION_TEXT, "num_samples": WINDOWS, "seqlen": train.WINDOW, "seed": seed}
    calibration = [f"calibration.{key}={value}" for key, value in chosen.items()]
    changes = [*calibration, *WIDTHS, *kind.changes, *kind.presets[row]]
    recipe = jointquant.load_recipe(row.partition(",")[0], changes)
    with tempfile.TemporaryDirectory() as name:
        out = (arguments.keep or Path(name)) / f"{row}-{seed}"
        made = jointquant.quantize(arguments.model, out, recipe, overwrite=True)
        return found(out, arguments) | {"seconds": made.seconds}


def found(artifact: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Perplexity and divergence on the held-out text."""
    text, sizes = str(HELDOUT_TEXT), {"seqlen": train.WINDOW, "max_tokens": arguments.max_tokens}
    measured = jointquant.evaluate(artifact, (text,), reference=arguments.model, **sizes)
    divergence = measured.divergence[text]
    return {"perplexity": measured.perplexity[text], "kl": divergence.mean, "top1": divergence.same_top}


if __name__ == "__main__":
    main()
