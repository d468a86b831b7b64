"""Plans on paper: large models of published sizes on one accelerator, as ``quantize --dry-run`` prints them.

    python benchmarks/plans.py

Writes benchmarks/results/plans.json (70B, in detail), plans_by_size.json, and plans_h100.json: the seconds that
``jointquant plan --gpu h100`` predicts for 7B and 70B, by stage.
Writes benchmarks/results/plans.json (70B, in detail), plans_by_size.json, and plans_published.json (of published
configurations, as they are).
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from transformers import LlamaConfig

import jointquant
from jointquant.models.configuration import read_config_file
from jointquant.models.registry import ARCHITECTURES
from report import machine

RESULTS = Path(__file__).parent / "results"
PUBLISHED = Path(__file__).parents[1] / "tests" / "models" / "configs"
SEVENTY = {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
}
MODELS = {
    "Llama-2-70B": SEVENTY | {"vocab_size": 32000, "max_position_embeddings": 4096},
    "Llama-3-70B": SEVENTY | {"vocab_size": 128256, "max_position_embeddings": 8192, "rope_theta": 500000.0},
}
WIDE = {"vocab_size": 128256, "max_position_embeddings": 8192, "rope_theta": 500000.0}
BY_SIZE = {
    "1B": WIDE
    | {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "tie_word_embeddings": True}
    | {"num_attention_heads": 32, "num_key_value_heads": 8},
    "8B": WIDE
    | {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}
    | {"num_attention_heads": 32, "num_key_value_heads": 8},
    "70B": SEVENTY | WIDE,
}
MEMORY, SIZE = "64GB", "70B"
DEVICES = {"dartquant": "24GB", "w4a4kv4": "80GB"}
"""By recipe: refining a layer's rounding takes gradients, and so more memory."""

CARD = "h100"
ON_CARD = {
    "Llama-2-7B": (
        {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "vocab_size": 32000}
        | {"num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 4096},
        "8B",
    ),
    "Llama-2-70B": (MODELS["Llama-2-70B"], SIZE),
}
CARD_RECIPES = ("w4a16", "dartquant", "w4a4kv4", "jointquant")


def main() -> None:
    """Plan every model and write the result files; with the word ``published`` the last one alone."""
    if sys.argv[1:] == ["published"]:
        published()
        return
    large = [
        planned(name, sizes, recipe, device, SIZE)
        for recipe, device in DEVICES.items()
        for name, sizes in MODELS.items()
    ]
    write("plans", large, size=SIZE)
    kinds = [("w4a16", "80GB"), ("dartquant", "24GB")]
    by_size = [
        planned(f"Llama 3 {size}", sizes, recipe, device, size)
        for recipe, device in kinds
        for size, sizes in BY_SIZE.items()
    ]
    write("plans_by_size", by_size)
    on_card = [
        planned(name, sizes, recipe, None, size, CARD)
        for name, (sizes, size) in ON_CARD.items()
        for recipe in CARD_RECIPES
    ]
    write("plans_h100", on_card)
    published()


def published() -> None:
    """The plans of published configurations, by the simplest recipe that rotates, and their result file."""
    rows = []
    for path in sorted(PUBLISHED.glob("*.json"), key=lambda path: path.stem.lower()):
        family = read_config_file(path).model_type
        changes = ["rotations.r1.kind=none"] if ARCHITECTURES[family].writer_norms else []
        recipe = jointquant.load_recipe("quarot", changes)
        plan = jointquant.dry_run(path, recipe, memory_budget=MEMORY, device_budget="80GB").to_dict()
        kept = {key: plan[key] for key in ("storage", "host_peak_bytes", "device_peak_bytes", "disk", "seconds")}
        rows.append({"model": path.stem, "family": family} | kept)
        print(rows[-1])
    write("plans_published", rows, recipe="quarot", device_budget="80GB")


def planned(
    name: str, sizes: dict[str, Any], recipe: str, device: str | None, size: str, gpu: str | None = None
) -> dict[str, object]:
    """A model's plan on an accelerator with so much memory, or on a card."""
    with tempfile.TemporaryDirectory() as folder:
        LlamaConfig(**sizes, dtype="bfloat16").save_pretrained(folder)
        settings = jointquant.load_recipe(recipe, size=size)
        plan = jointquant.dry_run(folder, settings, memory_budget=MEMORY, device_budget=device, gpu=gpu)
    row = {"model": name, "recipe": recipe, "device_budget": device} | plan.to_dict()
    print(row)
    return row


def write(name: str, rows: list[dict[str, object]], **facts: str) -> None:
    """The result file ``name``."""
    result = {"command": "python benchmarks/plans.py", **machine(), **facts, "memory_budget": MEMORY, "rows": rows}
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
