"""Peak memory against depth: the same model with few and with many layers, beside what the plan predicts.

    python benchmarks/memory.py [--layers 8,32] [--budget SIZE] [--verbs quantize,compare,stats] [--out FILE]

Each model is generated (random weights), quantized at W4A4KV4 with GPTQ (dartquant) in a process of its own, and
removed; compare has rtn beside it, and measures 512 tokens. Writes benchmarks/results/memory.json, or FILE. The bound
is what a layer-by-layer run may need in the dtype it computes in: the embeddings, three layers, the hidden states of
the plan and 600 MB. Rotations are learned in a few steps only: more of them take time, and no more memory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jointquant
import jointquant.demo
from jointquant.backend.memory import bytes_of_size, peak_rss_bytes
from jointquant.models.configuration import read_config
from jointquant.planning.plan import Plan
from jointquant.planning.shape import model_of, shape_of_model
from report import machine

RESULT = Path(__file__).parent / "results" / "memory.json"
RECIPE = "dartquant"
HELDOUT = str(Path(jointquant.demo.__file__).parent / "heldout.txt")
SETTINGS = {
    "calibration.source": str(Path(jointquant.demo.__file__).parent / "calibration.txt"),
    "calibration.num_samples": 1,
    "calibration.seqlen": 512,
    "rotations.r1.steps": 5,
    "rotations.r2.steps": 5,
}
ALLOWANCE = 600_000_000
FLOAT = 4


def main() -> None:
    """Measure every depth and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", default="8,32")
    parser.add_argument("--budget", help="--memory-budget of the runs, e.g. 1300MB: hidden states may go to files")
    parser.add_argument("--verbs", default="quantize", help="of quantize, compare and stats")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--one", nargs=3, metavar=("VERB", "MODEL", "OUT"), help="one run, as JSON (used by itself)")
    arguments = parser.parse_args()
    if arguments.one:
        verb, model, out = arguments.one
        print(json.dumps(one(verb, Path(model), Path(out), arguments.budget)))
        return
    rows = []
    for layers in (int(number) for number in arguments.layers.split(",")):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            subprocess.run(
                [sys.executable, "large_checkpoint.py", folder / "m", "--layers", str(layers)], cwd=HERE, check=True
            )
            for verb in arguments.verbs.split(","):
                command = [sys.executable, __file__, "--one", verb, str(folder / "m"), str(folder / verb)]
                command += ["--budget", arguments.budget] if arguments.budget else []
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                rows.append({"verb": verb, "layers": layers} | json.loads(done.stdout.splitlines()[-1]))
                print(rows[-1], flush=True)
    result = {
        "command": " ".join(["python benchmarks/memory.py", *sys.argv[1:]]),
        **machine(),
        "recipe": RECIPE,
        "settings": SETTINGS | {"calibration.source": "the demo's calibration text"},
        "growth": rows[-1]["peak_bytes"] / rows[0]["peak_bytes"],
        "rows": rows,
    }
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result))


HERE = Path(__file__).parent


def one(verb: str, model: Path, out: Path, budget: str | None) -> dict[str, object]:
    """One run in this process: its peak, what was predicted, and the bound."""
    plans: list[Plan] = []
    changes = [f"{key}={value}" for key, value in SETTINGS.items()]
    recipe = jointquant.load_recipe(RECIPE, changes)
    options: dict[str, Any] = {"memory_budget": budget, "announce": plans.append}
    start = time.perf_counter()
    if verb == "quantize":
        jointquant.quantize(model, out, recipe, **options)
    elif verb == "stats":
        jointquant.stats(model, out, recipe, **options)
    else:
        plain = jointquant.load_recipe("rtn", [change for change in changes if change.startswith("calibration")])
        jointquant.compare(
            model, {"rtn": plain, RECIPE: recipe}, out, texts=(HELDOUT,), eval_seqlen=512, max_tokens=512, **options
        )
    (plan,) = plans
    shape = shape_of_model(*model_of(read_config(model)))
    states = sum(phase.host.get("hidden states", 0) for phase in plan.phases[:1])
    return {
        "peak_bytes": peak_rss_bytes(),
        **({"budget_bytes": bytes_of_size(budget)} if budget else {}),
        "predicted_bytes": plan.host_peak,
        "bound_bytes": FLOAT * (shape.embeddings + 3 * shape.layer) + states + ALLOWANCE,
        "hidden_states": plan.choice.storage,
        "seconds": time.perf_counter() - start,
    }


if __name__ == "__main__":
    main()
