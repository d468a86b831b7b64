"""The preset ``jointquant`` end to end, against the method written out in plain torch (tests/jointquant_by_hand.py).

    python benchmarks/jointquant_parity.py

The embedded model, W4A4 in groups of 128, 16 windows of 128 tokens, perplexity on 57,344 tokens. For each seed both
sides start from the same R1 and see the same tokens in the same order. Steps of weights are max/7.5, as the preset has
it, and max/8, where no weight lies between two integers because it is the largest. Each row also has the preset on the
embedded model as it is stored, whose embedding, head and hidden states are bfloat16. Writes
benchmarks/results/jointquant_parity.json.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from dataclasses import replace
from itertools import product
from pathlib import Path

from report import Result

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from jointquant_sides import DEMO, Case, in_float32

OUT = Path(__file__).parent / "results" / "jointquant_parity.json"
GRIDS, SEEDS = ("compressed-tensors", "jointquant"), (0, 1, 2, 3)
SIZES = {"windows": 16, "batch": 585, "evaluated": 57344}


def main() -> None:
    """Both sides with each seed."""
    result = Result(OUT, "python benchmarks/jointquant_parity.py", **SIZES)
    with tempfile.TemporaryDirectory() as name:
        model, out = in_float32(Path(name) / "model"), Path(name) / "artifact"
        for grid, seed in product(GRIDS, SEEDS):
            case = Case(model, seed, **SIZES, grid=grid)
            script, preset = case.by_hand(), case.by_preset(out)
            shutil.rmtree(out)
            stored = replace(case, model=DEMO / "model").by_preset(out)
            shutil.rmtree(out)
            row = {"grid": grid, "seed": seed, "script": script.perplexity, "preset": preset.perplexity}
            row |= {"apart": preset.perplexity / script.perplexity - 1, "as_stored": stored.perplexity}
            row["rotations_apart"] = (preset.rotation - script.rotation).abs().max().item()
            result.add(row)


if __name__ == "__main__":
    main()
