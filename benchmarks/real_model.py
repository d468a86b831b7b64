"""Quantized SmolLM2-135M-Instruct: perplexity, divergence, agreement, seconds and memory of recipes, side by side.

    python benchmarks/real_model.py PART --calibration wikitext2-valid.txt --test wikitext2-test.txt [--rows NAME ...]

PART is a table of rows below: ``presets``, ``sites`` or ``seeds``. Every row is quantized in a process of its
own on windows of 256 tokens, saved, and measured from its artifact on the first 8,192 tokens of the test text, beside
the unquantized model. Weights are per channel, activations per token, the cache per head. Writes
benchmarks/results/real_model_PART.json after every row; rows that are there already are kept unless they are named.
With ``--keep FOLDER`` artifacts stay there, and a row that was stopped goes on. A row has the load average of its time:
seconds are those of this process only where it was alone.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pictures import bits_of
from smollm2 import CACHE, PACKAGE, fetch

from report import machine

if TYPE_CHECKING:
    from jointquant import Recipe

RESULTS = Path(__file__).parent / "results"
SEQLEN, TEST_TOKENS = 256, 8192
PER_CHANNEL = "weights.group_size=null"
KV16 = "kv_cache.num_bits=16"
REFINED = ("weights.signed_scale=true", "weights.method=rtn", "refinement.steps=75", "refinement.rounds=1")
"""As the presets with 4-bit inputs are."""
RELATIVE = "refinement.distance=relative"
LONGER = (RELATIVE, "refinement.steps=150")
LONGEST = (RELATIVE, "refinement.steps=300")
FROM_GPTQ = ("weights.signed_scale=true", "refinement.rounds=1", *LONGER)
"""Refined from where GPTQ leaves the integers."""
HELD = ("weights.signed_scale=true", "refinement.steps=75", "refinement.rounds=1", RELATIVE, "refinement.hold=0.5")
"""From there too, in half the steps, weights drawn halfway to their integers before."""
HELD_LONGER = tuple("refinement.steps=150" if change == "refinement.steps=75" else change for change in HELD)
W4A16 = ("activations.num_bits=16", KV16, PER_CHANNEL)


@dataclass(frozen=True)
class Tuning:
    """For how many epochs of how many windows an artifact is tuned."""

    epochs: int
    windows: int


@dataclass(frozen=True)
class Row:
    """A run: a preset, what is changed of it, how many calibration windows, and how its artifact is tuned, if it is."""

    recipe: str
    changes: tuple[str, ...] = ()
    windows: int = 32
    tuning: Tuning | None = None


TUNED = ", tuned"
"""Begins the end of the name of a row that is another one, tuned: the artifact of that is taken where it was kept."""

PRESETS = {
    "W4A4KV4 rtn": Row("rtn"),
    "W4A4KV4 gptq": Row("gptq"),
    "W4A4KV4 quarot": Row("quarot"),
    "W4A4KV4 dartquant": Row("dartquant"),
    "W4A4KV16 fast": Row("fast"),
    "W4A4KV4 w4a4kv4, 30 relative steps": Row("w4a4kv4", ("refinement.steps=30", RELATIVE)),
    "W4A4KV4 w4a4kv4": Row("w4a4kv4"),
    "W4A4KV4 w4a4kv4, 128 windows": Row("w4a4kv4", (), 128),
    "W4A4KV4 w4a4kv4, tuned": Row("w4a4kv4", (), 32, Tuning(2, 32)),
    "W4A4KV4 w4a4kv4, relative, 128 windows": Row("w4a4kv4", (RELATIVE,), 128),
    "W4A4KV4 w4a4kv4, relative, 128 windows, tuned": Row("w4a4kv4", (RELATIVE,), 128, Tuning(2, 128)),
    "W4A4KV4 w4a4kv4, relative, 128 windows, tuned on 512": Row("w4a4kv4", (RELATIVE,), 128, Tuning(1, 512)),
    "W4A4KV4 w4a4kv4, relative, 150 steps, 128 windows": Row("w4a4kv4", LONGER, 128),
    "W4A4KV4 w4a4kv4, relative, 150 steps, 128 windows, tuned on 512": Row("w4a4kv4", LONGER, 128, Tuning(1, 512)),
    "W4A4KV4 w4a4kv4, relative, 300 steps, 128 windows": Row("w4a4kv4", LONGEST, 128),
    "W4A4KV4 w4a4kv4, relative, 300 steps, 128 windows, tuned on 512": Row("w4a4kv4", LONGEST, 128, Tuning(1, 512)),
    "W4A4KV16 dartquant": Row("dartquant", (KV16,)),
    "W4A4KV16 w4a4kv16": Row("w4a4kv16"),
    "W4A4KV16 w4a4kv16, 128 windows": Row("w4a4kv16", (), 128),
    "W4A4KV16 w4a4kv16, 128 windows, tuned": Row("w4a4kv16", (), 128, Tuning(2, 128)),
    "W4A16 gptq": Row("gptq", W4A16),
    "W4A16 gptq, shallow": Row("gptq", (*W4A16, "weights.clip=shallow")),
    "W4A16 w4a16 per channel": Row("w4a16", (PER_CHANNEL,)),
    "W4A16 w4a16 per channel, 128 windows": Row("w4a16", (PER_CHANNEL,), 128),
    "W4A8KV8 w4a8kv8": Row("w4a8kv8"),
    "W4A8KV8 w4a8kv8, 128 windows": Row("w4a8kv8", (), 128),
    "W4A8KV8 w4a8kv8, 128 windows, tuned on 512": Row("w4a8kv8", (), 128, Tuning(1, 512)),
    "W4A8KV8 w4a8kv8, refined behind GPTQ, 128 windows": Row("w4a8kv8", FROM_GPTQ, 128),
    "W4A8KV8 w4a8kv8, refined behind GPTQ, held, 128 windows": Row("w4a8kv8", HELD, 128),
    "W4A8KV8 w4a8kv8, refined behind GPTQ, held, 128 windows, tuned on 512": Row("w4a8kv8", HELD, 128, Tuning(1, 512)),
    "W4A8KV8 w4a8kv8, refined behind GPTQ, held, 150 steps, 128 windows": Row("w4a8kv8", HELD_LONGER, 128),
    "W4A8KV8 w4a8kv8, refined, 128 windows": Row("w4a8kv8", REFINED, 128),
    "W4A8KV8 w4a8kv8, refined, relative, 128 windows": Row("w4a8kv8", (*REFINED, RELATIVE), 128),
    "W4A8KV8 w4a8kv8, refined, relative, 128 windows, tuned": Row("w4a8kv8", (*REFINED, RELATIVE), 128, Tuning(2, 128)),
}

FLOAT = ("weights.num_bits=16", "refinement.steps=0")
OFF = (*FLOAT, "activations.num_bits=16", KV16)
SITES = {
    "weights alone": Row("dartquant", ("activations.num_bits=16", KV16)),
    "inputs alone": Row("dartquant", (*FLOAT, KV16)),
    "keys and values alone": Row("dartquant", (*FLOAT, "activations.num_bits=16")),
}
SEEDED = {
    "W4A4KV4 quarot": Row("quarot"),
    "W4A4KV4 dartquant": Row("dartquant"),
    "W4A4KV4 w4a4kv4": Row("w4a4kv4"),
}
"""What is run with several seeds."""
SEEDS = 3
PER_SEED = {
    f"{name}, seed {seed}": replace(row, changes=(*row.changes, f"calibration.seed={seed}"))
    for name, row in SEEDED.items()
    for seed in range(SEEDS)
}
PARTS = {"presets": PRESETS, "sites": SITES, "seeds": PER_SEED}


def main() -> None:
    """Measure the rows of a part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--rows", nargs="+", help="only these, measured anew")
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--keep", type=Path, help="a folder for the artifacts; without it they are removed")
    parser.add_argument("--again", metavar="WHERE", help="keep rows as 'NAME, WHERE', beside those of another machine")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    model = fetch(arguments.cache)
    if arguments.one:
        with nullcontext(arguments.keep) if arguments.keep else tempfile.TemporaryDirectory() as folder:
            print(json.dumps(measured(model, arguments.one, Path(folder), arguments.calibration, arguments.test)))
        return
    path = RESULTS / f"real_model_{arguments.part}.json"
    result = json.loads(path.read_text()) if path.is_file() else {"rows": {}}
    command = f"python benchmarks/real_model.py {arguments.part} …"
    result |= {"command": command, "model": PACKAGE, "seqlen": SEQLEN, "test_tokens": TEST_TOKENS}
    result.setdefault("unquantized", perplexity_of(model, arguments.test))
    for name in arguments.rows or [name for name in PARTS[arguments.part] if name not in result["rows"]]:
        own = [sys.executable, __file__, *sys.argv[1:], "--one", name]
        done = subprocess.run(own, check=True, stdout=subprocess.PIPE, text=True)
        kept = name if arguments.again is None else f"{name}, {arguments.again}"
        row = json.loads(done.stdout.splitlines()[-1]) | machine()
        if path.is_file():  # another process may have written rows meanwhile
            result["rows"] |= json.loads(path.read_text())["rows"]
        result["rows"][kept] = row
        print(kept, row, flush=True)
        path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def measured(model: Path, name: str, folder: Path, calibration: Path, test: Path) -> dict[str, Any]:
    """A row of the result: quantize, tune where the row says so, then measure the artifact in ``folder``."""
    import jointquant

    row = next(rows[name] for rows in PARTS.values() if name in rows)
    protocol = (f"calibration.source={calibration}", f"calibration.num_samples={row.windows}")
    recipe = jointquant.load_recipe(row.recipe, [*protocol, f"calibration.seqlen={SEQLEN}", *row.changes])
    bits = [recipe.weights.num_bits, recipe.activations.num_bits, recipe.kv_cache.num_bits]
    assert name in SITES or bits == bits_of(name.split()[0]), f"{name!r} is the name of a recipe of {bits} bits"
    artifact = folder / re.sub(r"\W+", "-", name.partition(TUNED)[0])
    costs = quantized(model, artifact, recipe)
    if row.tuning is not None:
        base, artifact = artifact, folder / re.sub(r"\W+", "-", name)
        costs |= tuned(model, base, artifact, row.tuning)
    options = {"reference": model, "seqlen": SEQLEN, "max_tokens": TEST_TOKENS}
    found = jointquant.evaluate(artifact, (str(test),), **options)
    divergence = found.divergence[str(test)]
    return {
        "recipe": row.recipe,
        "changes": list(row.changes),
        "windows": row.windows,
        "perplexity": found.perplexity[str(test)],
        "kl": divergence.mean,
        "kl_stderr": divergence.stderr,
        "top1": divergence.same_top,
        **costs,
    }


def quantized(model: Path, artifact: Path, recipe: Recipe) -> dict[str, Any]:
    """Make an artifact, and what that cost; one of the same recipe that is there is taken, and cost nothing."""
    import jointquant
    from jointquant.backend.memory import peak_rss_bytes
    from jointquant.recipe.recorded import recorded

    if (artifact / "config.json").is_file():
        held = json.loads((artifact / "config.json").read_text())["quantization_config"]["recipe"]
        assert held == recorded(recipe), f"{artifact} is of another recipe than this row"
        return {"seconds": None}
    before = peak_rss_bytes()
    made = jointquant.quantize(model, artifact, recipe)
    peak = made.peak_rss_bytes - before
    costs = {"seconds": made.seconds, "resumed": made.resumed, "peak_bytes_above_imports": peak}
    return costs | {"load_average": os.getloadavg()[1]}


def tuned(model: Path, base: Path, artifact: Path, tuning: Tuning) -> dict[str, Any]:
    """Tune an artifact, and what that cost; one that is there, tuned as long on as much, is taken, and cost nothing."""
    import jointquant

    how = {"tune_epochs": tuning.epochs, "tune_windows": tuning.windows}
    if (artifact / "config.json").is_file():
        facts = json.loads((artifact / "config.json").read_text())["quantization_config"]["tuned"]
        same = [(fact["epochs"], fact["windows"]) for fact in facts] == [tuple(how.values())]
        assert same, f"{artifact} was tuned otherwise than this row"
        return how | {"tune_seconds": None}
    settings = jointquant.TuneSettings(epochs=tuning.epochs)
    made = jointquant.tune(base, model, artifact, settings=settings, num_samples=tuning.windows)
    return how | {"tune_seconds": made.seconds, "load_average": os.getloadavg()[1]}


def perplexity_of(model: Path, test: Path) -> float:
    """Of the unquantized model."""
    import jointquant

    found = jointquant.evaluate(model, (str(test),), seqlen=SEQLEN, max_tokens=TEST_TOKENS)
    return found.perplexity[str(test)]


if __name__ == "__main__":
    main()
