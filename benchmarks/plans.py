"""Plans on paper: large models of published sizes on one accelerator, as ``quantize --dry-run`` prints them.

    python benchmarks/plans.py

Writes benchmarks/results/plans.json.
"""

from __future__ import annotations

import json
import platform
import tempfile
from datetime import date
from pathlib import Path

import torch
import transformers
from transformers import LlamaConfig

import jointquant

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
BUDGETS = {"memory_budget": "64GB", "device_budget": "24GB"}
RECIPE, SIZE = "w4a4kv4", "70B"


def main() -> None:
    """Plan every model and write the result file."""
    rows = []
    for name, sizes in MODELS.items():
        with tempfile.TemporaryDirectory() as folder:
            LlamaConfig(**sizes, dtype="bfloat16").save_pretrained(folder)
            plan = jointquant.dry_run(folder, jointquant.load_recipe(RECIPE, size=SIZE), **BUDGETS)
        rows.append({"model": name} | plan.to_dict())
        print(rows[-1])
    result = {
        "command": "python benchmarks/plans.py",
        "date": date.today().isoformat(),
        "machine": platform.machine(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "recipe": RECIPE,
        "size": SIZE,
        "budgets": BUDGETS,
        "rows": rows,
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
