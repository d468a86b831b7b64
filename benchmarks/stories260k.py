"""The figures of docs/accuracy.md: recipes on a small real model, over seeds.

    python benchmarks/stories260k.py MODEL TEXT.txt

MODEL is the stories260k checkpoint in the transformers format, TEXT a TinyStories sample whose first 150,000
characters calibrate (64 windows of 256 tokens) and whose rest tests. Writes benchmarks/results/stories260k.json. With
``--recipes`` only the rows of these are measured anew, and say when and where; the others stay.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
from datetime import date
from pathlib import Path

import torch
import transformers

import jointquant
from report import machine

RESULT = Path(__file__).parent / "results" / "stories260k.json"
RECIPES = ("rtn", "gptq", "quarot", "dartquant")
WIDTHS = {"W4A4KV16": ("kv_cache.num_bits=16",), "W4A4KV4": ()}
CALIBRATION_CHARACTERS = 150_000


def main() -> None:
    """Measure every recipe at every width and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("text", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, help="only the rows of these, measured anew")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = arguments.text.read_text()
        calibration, test = folder / "calibration.txt", folder / "test.txt"
        calibration.write_text(text[:CALIBRATION_CHARACTERS])
        test.write_text(text[CALIBRATION_CHARACTERS:])
        reference = jointquant.evaluate(arguments.model, (str(test),), seqlen=256)
        rows = []
        for width, changes in WIDTHS.items():
            for recipe in arguments.recipes or RECIPES:
                values = [
                    measure(arguments.model, recipe, changes, seed, calibration, test, folder / "artifact")
                    for seed in range(arguments.seeds)
                ]
                rows.append(row(width, recipe, values))
                print(rows[-1])
    if arguments.recipes:
        write_anew(rows)
        return
    result = {
        "command": "python benchmarks/stories260k.py MODEL TEXT.txt",
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "tokens": reference.tokens,
        "fp": reference.perplexity[str(test)],
        "rows": rows,
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")


def write_anew(rows: list[dict[str, object]]) -> None:
    """Put rows in the place of those of the same width and recipe."""
    result = json.loads(RESULT.read_text())
    anew = {(each["width"], each["recipe"]): each | machine() for each in rows}
    result["rows"] = [anew.get((old["width"], old["recipe"]), old) for old in result["rows"]]
    RESULT.write_text(json.dumps(result, indent=2) + "\n")


def measure(
    model: str, recipe: str, changes: tuple[str, ...], seed: int, calibration: Path, test: Path, out: Path
) -> float:
    """Perplexity of the reloaded artifact."""
    protocol = (f"calibration.source={calibration}", "calibration.num_samples=64", "calibration.seqlen=256")
    settings = jointquant.load_recipe(recipe, [*protocol, f"calibration.seed={seed}", *changes])
    jointquant.quantize(model, out, settings, overwrite=True)
    return jointquant.evaluate(out, (str(test),), seqlen=256).perplexity[str(test)]


def row(width: str, recipe: str, values: list[float]) -> dict[str, object]:
    """Mean and spread over seeds."""
    return {
        "width": width,
        "recipe": recipe,
        "mean": statistics.mean(values),
        "min": min(values),
        "max": max(values),
        "seeds": len(values),
    }


if __name__ == "__main__":
    main()
