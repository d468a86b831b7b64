"""Plans on paper: large models of published sizes on one accelerator, as ``quantize --dry-run`` prints them.

    python benchmarks/plans.py

Writes benchmarks/results/plans.json.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from transformers import LlamaConfig

import jointquant
from report import machine

RESULT = Path(__file__).parent / "results" / "plans.json"
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
MEMORY, SIZE = "64GB", "70B"
DEVICES = {"dartquant": "24GB", "w4a4kv4": "80GB"}
"""By recipe: refining a layer's rounding takes gradients, and so more memory."""


def main() -> None:
    """Plan every model and write the result file."""
    rows = []
    for recipe, device in DEVICES.items():
        for name, sizes in MODELS.items():
            with tempfile.TemporaryDirectory() as folder:
                LlamaConfig(**sizes, dtype="bfloat16").save_pretrained(folder)
                settings = jointquant.load_recipe(recipe, size=SIZE)
                plan = jointquant.dry_run(folder, settings, memory_budget=MEMORY, device_budget=device)
            rows.append({"model": name, "recipe": recipe, "device_budget": device} | plan.to_dict())
            print(rows[-1])
    result = {
        "command": "python benchmarks/plans.py",
        **machine(),
        "size": SIZE,
        "memory_budget": MEMORY,
        "rows": rows,
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
