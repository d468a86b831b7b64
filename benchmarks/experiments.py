"""The recipes for experiments beside each other, by ``jointquant compare``: the tables of docs/experiments.md.

    python benchmarks/experiments.py demo
    python benchmarks/experiments.py stories260k MODEL TEXT.txt

The embedded model with one seed, on the demo's texts; stories260k with three, calibrated on the first 150,000
characters of a TinyStories sample and tested on the rest. W4A4KV4, 64 windows of 256 tokens. Writes
benchmarks/results/experiments_<part>.json, without the recipes' details.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stories260k import CALIBRATION_CHARACTERS

import jointquant
from jointquant.demo.story import CALIBRATION_TEXT, HELDOUT_TEXT, MODEL
from report import machine

RESULTS = Path(__file__).parent / "results"
RECIPES = ("exp-independent", "exp-joint", "exp-whip", "exp-swd")
KEPT = ("about", "reference", "rows", "runs")
"""Of what a comparison finds."""


def compared(model: Path, calibration: Path, test: Path, seeds: Sequence[int], folder: Path) -> dict[str, Any]:
    """What a comparison of the recipes finds, as far as the tables need it, the text by its name alone."""
    protocol = (f"calibration.source={calibration}", "calibration.num_samples=64", "calibration.seqlen=256")
    texts, out = (str(test),), folder / "compared"
    found = jointquant.compare(model, RECIPES, out, texts=texts, changes=protocol, seeds=seeds, eval_seqlen=256)
    data = found.to_dict()
    data["about"].pop("recipes")
    named = json.dumps({key: data[key] for key in KEPT}).replace(json.dumps(str(test)), json.dumps(test.name))
    kept: dict[str, Any] = json.loads(named)
    return kept


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("demo", "stories260k"))
    parser.add_argument("model", nargs="?", type=Path, help="for stories260k")
    parser.add_argument("text", nargs="?", type=Path, help="for stories260k")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder, given = Path(made), ""
        if arguments.part == "demo":
            found = compared(MODEL, CALIBRATION_TEXT, HELDOUT_TEXT, (0,), folder)
        else:
            if arguments.model is None or arguments.text is None:
                parser.error("stories260k: expected its checkpoint, and a TinyStories sample")
            text, given = arguments.text.read_text(encoding="utf-8"), " MODEL TEXT.txt"
            calibration, test = folder / "calibration.txt", folder / "test.txt"
            calibration.write_text(text[:CALIBRATION_CHARACTERS], encoding="utf-8")
            test.write_text(text[CALIBRATION_CHARACTERS:], encoding="utf-8")
            found = compared(arguments.model, calibration, test, (0, 1, 2), folder)
    command = f"python benchmarks/experiments.py {arguments.part}{given}"
    written = json.dumps({"command": command, **machine(), **found}, indent=1)
    path = RESULTS / f"experiments_{arguments.part}.json"
    path.write_text(written + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
