"""The ablation of docs/accuracy.md: what each ingredient of the default presets is worth, on several models and texts.

    python benchmarks/accuracy.py presets MODEL TEXT.txt
    python benchmarks/accuracy.py ingredients MODEL TEXT.txt
    python benchmarks/accuracy.py models MODEL TEXT.txt
    python benchmarks/accuracy.py texts MODEL CALIBRATION.txt TEXT.txt...
    python benchmarks/accuracy.py sites MODEL TEXT.txt
    python benchmarks/accuracy.py smoothing MODEL TEXT.txt --seeds 6
    python benchmarks/accuracy.py weights MODEL TEXT.txt --peer-python PYTHON
    python benchmarks/accuracy.py seen MODEL TEXT.txt

MODEL is the stories260k checkpoint, TEXT a TinyStories sample whose first 150,000 characters calibrate (64 windows of
256 tokens) and whose rest tests. ``models`` is MODEL with its residual stream turned onto its principal axes (the same
function, with outlier channels), and the embedded model, as it is and so turned, calibrated on 64 windows, and on all
that the demo's calibration text has. ``texts`` calibrates on one text and tests on others.
``sites`` quantizes inputs alone, those of the embedded model: all, or all but those of one site. ``smoothing`` is the
default presets with scales before the rotations.
``weights`` is W4A16 alone, beside auto-round in the environment of PYTHON. ``seen`` calibrates on the beginning of a
text and measures divergence there too. Writes benchmarks/results/accuracy_<part>.json after every row. With
``--recipes`` only the rows of these are measured anew, and say when and where; the others stay.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch
import transformers
from stories260k import CALIBRATION_CHARACTERS, row
from transformers import AutoTokenizer
from turned import turned_onto_principal_axes
from widened import widened

import jointquant
from jointquant.demo.story import CALIBRATION_TEXT, HELDOUT_TEXT
from jointquant.demo.story import MODEL as EMBEDDED
from report import machine

RESULTS = Path(__file__).parent / "results"
WINDOWS, SEQLEN = 64, 256
ALL_WINDOWS = 222
"""As many as the demo's calibration text has."""
MANY_WINDOWS = 256
"""Of TEXT, for ``seen``."""

RANGE = "kind: learned, objective: range, optimizer: cayley, learning_rate: 1.0"
PER_CHANNEL = "weights.group_size=null"
STEPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("R1 and R2 for the range, joint, Cayley", ()),
    ("keys centred", ("kv_cache.centring=keys",)),
    ("queries and keys balanced", ("kv_cache.balancing=full",)),
    ("R3 learned", (f"rotations.r3={{{RANGE}}}",)),
    ("values centred", ("kv_cache.centring=both",)),
    ("inputs centred", ("activations.centring=mean",)),
    ("clip ratios searched", ("activations.clip_ratio=search",)),
    ("smoothed before the rotations", ("smoothing={alpha: 0.5, measure: rms}",)),
    ("R4 learned", ("rotations.r4={kind: learned}",)),
)
"""From the ``jointquant`` preset at W4A4KV4, one after another."""

PRESETS = (
    ("W4A4KV4", "dartquant", ()),
    ("W4A4KV4", "w4a4kv4", ()),
    ("W4A4KV4", "w4a4kv4-best", ()),
    ("W4A4KV16", "dartquant", ("kv_cache.num_bits=16",)),
    ("W4A4KV16", "w4a4kv16", ()),
    ("W4A16", "gptq", ("activations.num_bits=16", "kv_cache.num_bits=16")),
    ("W4A16", "w4a16", (PER_CHANNEL,)),
    ("W4A8KV8", "w4a8kv8", ()),
    ("W4A8KV8", "w4a8kv8-best", ()),
)

INPUTS = ("weights.num_bits=16", "refinement.steps=0")
SITES = {
    "q, k, v": "*.self_attn.[qkv]_proj",
    "o": "*.self_attn.o_proj",
    "gate, up": "*.mlp.[gu]*",
    "down": "*.mlp.down_proj",
}
"""Of the embedded model, by their readers."""

ATTENTION = 'overrides=[{modules: "*.mlp.*", weights: {num_bits: 16}}]'
"""Leaves out what auto-round leaves out of a model whose MLP has 172 channels."""

SMOOTHINGS = {
    "none": "smoothing.alpha=null",
    "largest values": "smoothing={alpha: 0.5, measure: max}",
    "root mean squares": "smoothing={alpha: 0.5, measure: rms}",
}

SMOOTHED = (
    "weights.symmetric=false",
    "rotations.r1.kind=none",
    "rotations.r2.kind=none",
    "smoothing={alpha: 0.5, measure: rms}",
    "refinement.steps=600",
)

WEIGHTS = (
    ("all linears", "gptq", ("activations.num_bits=16", "kv_cache.num_bits=16")),
    ("all linears", "w4a16", (PER_CHANNEL,)),
    ("all linears, asymmetric", "w4a16", (PER_CHANNEL, "weights.symmetric=false")),
    ("all linears, asymmetric, smoothed and not rotated, 600 steps", "w4a16", (PER_CHANNEL, *SMOOTHED)),
    ("attention's linears", "w4a16", (PER_CHANNEL, ATTENTION)),
    ("attention's linears, asymmetric", "w4a16", (PER_CHANNEL, ATTENTION, "weights.symmetric=false")),
)


class Bench:
    """One part of the benchmark: measures, and writes what it has so far.

    Args:
        part: its name.
        command: how it was called.
        seeds: how many.
        folder: for what it makes on the way.
        recipes: whose rows are measured, the others staying; None: all.
    """

    def __init__(self, part: str, command: str, seeds: int, folder: Path, recipes: Sequence[str] | None = None) -> None:
        self.path, self.seeds, self.folder = RESULTS / f"accuracy_{part}.json", seeds, folder
        self.peer_python: Path | None = None
        self.result: dict[str, object] = {
            "command": command,
            "date": date.today().isoformat(),
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        }
        self.rows: list[dict[str, object]] = []
        self.recipes = recipes
        if recipes is not None:
            self.result = json.loads(self.path.read_text())
            self.rows = self.result.pop("rows")  # type: ignore[assignment]

    def reference(self, model: str | Path, test: Path) -> float:
        """Perplexity of the unquantized model."""
        return jointquant.evaluate(model, (str(test),), seqlen=SEQLEN).perplexity[str(test)]

    def beside(self, model: str | Path, artifact: Path, test: Path) -> tuple[float, float]:
        """Perplexity of an artifact, and its KL divergence from the unquantized model."""
        found = jointquant.evaluate(artifact, (str(test),), reference=model, seqlen=SEQLEN)
        return found.perplexity[str(test)], found.divergence[str(test)].mean

    def measure(
        self,
        tests: Mapping[Path, dict[str, Any]],
        model: str | Path,
        recipe: str,
        changes: Iterable[str],
        calibration: Path,
        num_samples: int = WINDOWS,
    ) -> None:
        """Mean, least and largest perplexity of the reloaded artifacts over the seeds, their divergence from the
        unquantized model, and the seconds of a run.

        One row for each test, with its labels.
        """
        if self.recipes is not None and recipe not in self.recipes:
            return
        values: dict[Path, list[tuple[float, float]]] = {test: [] for test in tests}
        seconds = []
        for seed in range(self.seeds):
            given = {"source": calibration, "num_samples": num_samples, "seqlen": SEQLEN, "seed": seed}
            protocol = [f"calibration.{key}={value}" for key, value in given.items()]
            settings = jointquant.load_recipe(recipe, [*protocol, *changes])
            out = self.folder / "artifact"
            seconds.append(jointquant.quantize(model, out, settings, overwrite=True).seconds)
            for test in tests:
                values[test].append(self.beside(model, out, test))
        for test, found in values.items():
            perplexities, divergences = (list(each) for each in zip(*found, strict=True))
            self.add(tests[test], recipe, perplexities, seconds, divergences)

    def peer(self, labels: dict[str, str], model: str | Path, calibration: Path, test: Path) -> None:
        """The same of auto-round; what it says it has quantized goes into the labels."""
        script = Path(__file__).parent / "peer_auto_round.py"
        command = [self.peer_python, script, model, "--calib", calibration, "--test", test]
        if self.recipes is not None:
            return
        found = []
        for seed in range(self.seeds):
            done = subprocess.run([*map(str, command), "--seed", str(seed)], capture_output=True, text=True, check=True)
            found.append(json.loads(done.stdout.strip().splitlines()[-1]))
        (quantized,) = {", ".join(each["quantized"]) for each in found}
        name = f"auto-round {found[0]['versions']['auto-round']}"
        values, seconds = ([each[key] for each in found] for key in ("perplexity", "seconds"))
        self.add(labels | {"what": labels["what"].format(quantized)}, name, values, seconds)

    def add(
        self,
        labels: dict[str, Any],
        recipe: str,
        values: list[float],
        seconds: list[float],
        divergences: list[float] | None = None,
    ) -> None:
        """A row of some seeds; all rows so far are written. A peer's artifact has no divergence."""
        measured = {key: value for key, value in row("", recipe, values).items() if key != "width"}
        if divergences is not None:
            measured["divergence"] = sum(divergences) / len(divergences)
            measured |= {"divergence_min": min(divergences), "divergence_max": max(divergences)}
        made = labels | measured | {"seconds": sum(seconds) / len(seconds)}
        print(made, flush=True)
        if self.recipes is None:
            self.rows.append(made)
        else:
            alike = [n for n, old in enumerate(self.rows) if old["what"] == made["what"]]
            same = [n for n in alike if self.rows[n]["recipe"] == recipe]
            place = (same or [max(alike, default=len(self.rows) - 1) + 1])[0]
            self.rows[place : place + len(same)] = [made | machine()]
        self.path.write_text(json.dumps(self.result | {"rows": self.rows}, indent=2) + "\n")


def main() -> None:
    """Measure one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=tuple(PARTS))
    parser.add_argument("model")
    parser.add_argument("texts", type=Path, nargs="+")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--recipes", nargs="+", help="only the rows of these, measured anew")
    parser.add_argument("--peer-python", type=Path, help="weights: an interpreter that has auto-round")
    arguments = parser.parse_args()
    beside = arguments.part == "weights" and arguments.recipes is None
    if beside != (arguments.peer_python is not None):
        parser.error("--peer-python: expected for weights, an interpreter that has auto-round, and for no other part")
    with tempfile.TemporaryDirectory() as name:
        command = f"python benchmarks/accuracy.py {arguments.part} …"
        bench = Bench(arguments.part, command, arguments.seeds, Path(name), arguments.recipes)
        bench.peer_python = arguments.peer_python
        PARTS[arguments.part](bench, arguments.model, arguments.texts)


def split(text: Path, folder: Path) -> tuple[Path, Path]:
    """The part of a text that calibrates, and the one that tests."""
    characters = text.read_text()
    calibration, test = folder / "calibration.txt", folder / "test.txt"
    calibration.write_text(characters[:CALIBRATION_CHARACTERS])
    test.write_text(characters[CALIBRATION_CHARACTERS:])
    return calibration, test


def presets(bench: Bench, model: str, given: list[Path]) -> None:
    """The default presets beside ``dartquant`` and ``gptq``, weights per channel."""
    calibration, test = split(given[0], bench.folder)
    fp = bench.reference(model, test)
    for width, preset, changes in PRESETS:
        labels = {"what": width, "fp": f"{fp:.3f}", "changes": changes}
        bench.measure({test: labels}, model, preset, changes, calibration)


def ingredients(bench: Bench, model: str, given: list[Path]) -> None:
    """From the ``jointquant`` preset to ``w4a4kv4``, one ingredient after another."""
    calibration, test = split(given[0], bench.folder)
    fp = bench.reference(model, test)
    sofar: tuple[str, ...] = ()
    for words, changes in STEPS:
        sofar = (*sofar, *changes)
        bench.measure({test: {"what": words, "fp": f"{fp:.3f}"}}, model, "joint-range", sofar, calibration)


def models(bench: Bench, model: str, given: list[Path]) -> None:
    """``dartquant``, ``w4a4kv4`` and ``w4a4kv4-best`` on more models."""
    calibration, test = split(given[0], bench.folder)
    turned = turned_onto_principal_axes(model, calibration, bench.folder / "turned")
    embedded = turned_onto_principal_axes(EMBEDDED, CALIBRATION_TEXT, bench.folder / "turned embedded")
    subjects = [("stories260k, principal axes", turned, calibration, test, WINDOWS)]
    for num_samples in (WINDOWS, ALL_WINDOWS):
        subjects += [
            (f"embedded, {num_samples} windows", EMBEDDED, CALIBRATION_TEXT, HELDOUT_TEXT, num_samples),
            (f"embedded, principal axes, {num_samples} windows", embedded, CALIBRATION_TEXT, HELDOUT_TEXT, num_samples),
        ]
    for name, subject, source, heldout, num_samples in subjects:
        fp = bench.reference(subject, heldout)
        for preset in ("dartquant", "w4a4kv4", "w4a4kv4-best"):
            bench.measure({heldout: {"what": name, "fp": f"{fp:.3f}"}}, subject, preset, (), source, num_samples)


def texts(bench: Bench, model: str, given: list[Path]) -> None:
    """Calibrated on the first text, tested on the others."""
    source, *given = given
    tests = []
    for path in given:
        tests.append(bench.folder / path.name)
        tests[-1].write_text(path.read_text()[-CALIBRATION_CHARACTERS:])
    labels = {test: {"what": test.stem, "fp": f"{bench.reference(model, test):.3f}"} for test in tests}
    for preset in ("gptq", "quarot", "dartquant", "w4a4kv4"):
        bench.measure(labels, model, preset, (), source)


def sites(bench: Bench, model: str, given: list[Path]) -> None:
    """What inputs at 4 bits cost the embedded model, and where: ``w4a4kv16`` without its weights' rounding."""
    fp = f"{bench.reference(EMBEDDED, HELDOUT_TEXT):.3f}"
    kept = "activations: {num_bits: 16, clip_ratio: 1.0, centring: none}"
    rows = {"all inputs at 4 bits": INPUTS}
    for name, modules in SITES.items():
        rows[f"all but those of {name}"] = (*INPUTS, f'overrides=[{{modules: "{modules}", {kept}}}]')
    for what, changes in rows.items():
        bench.measure({HELDOUT_TEXT: {"what": what, "fp": fp}}, EMBEDDED, "w4a4kv16", changes, CALIBRATION_TEXT)


def smoothing(bench: Bench, model: str, given: list[Path]) -> None:
    """The default presets with SmoothQuant's scales, its own and those for what is rotated afterwards."""
    calibration, test = split(given[0], bench.folder)
    fp = f"{bench.reference(model, test):.3f}"
    for preset in ("w4a4kv16", "w4a4kv4"):
        for what, change in SMOOTHINGS.items():
            bench.measure({test: {"what": what, "fp": fp}}, model, preset, (change,), calibration)


def weights(bench: Bench, model: str, given: list[Path]) -> None:
    """W4A16 per channel beside auto-round, of all linears and of those alone that auto-round quantizes.

    It quantizes all of them too where the MLP has channels of zeros besides, so that 32 divides its size.
    """
    calibration, test = split(given[0], bench.folder)
    fp = {"fp": f"{bench.reference(model, test):.3f}"}
    for what, preset, changes in WEIGHTS:
        bench.measure({test: {"what": what} | fp}, model, preset, changes, calibration)
    bench.peer({"what": "all it quantizes: {}"} | fp, model, calibration, test)
    wide = widened(model, bench.folder / "widened")
    bench.peer({"what": "all linears, the MLP widened by zeros"} | fp, wide, calibration, test)


def seen(bench: Bench, model: str, given: list[Path]) -> None:
    """How close an artifact is on the windows that calibrated it, and on text that it has not seen."""
    calibration, test = split(given[0], bench.folder)
    for name, subject, source, heldout, recipes, amounts in (
        ("stories260k", model, calibration, test, ("dartquant", "w4a4kv4", "w4a16"), (WINDOWS, MANY_WINDOWS)),
        ("embedded", str(EMBEDDED), CALIBRATION_TEXT, HELDOUT_TEXT, ("dartquant", "w4a4kv4"), (WINDOWS, ALL_WINDOWS)),
    ):
        for windows in amounts:
            shown = beginning(source, subject, windows, bench.folder / f"{name} {windows}.txt")
            texts = {"those windows": shown, "other text": heldout}
            what = f"{name}, first {windows} windows"
            labels = {
                text: {"what": f"{what}: {where}", "fp": f"{bench.reference(subject, text):.3f}"}
                for where, text in texts.items()
            }
            for recipe in recipes:
                changes = (PER_CHANNEL,) if recipe == "w4a16" else ()
                bench.measure(labels, subject, recipe, changes, shown, windows)


def beginning(text: Path, model: str, windows: int, out: Path) -> Path:
    """Write as much of a text as has so many windows, and a few tokens more."""
    characters = text.read_text()
    tokenized = AutoTokenizer.from_pretrained(model)(characters, return_offsets_mapping=True)
    last = min(windows * SEQLEN + SEQLEN // 8, len(tokenized.input_ids) - 1)
    out.write_text(characters[: tokenized.offset_mapping[last][1]])
    return out


PARTS = {
    "presets": presets,
    "ingredients": ingredients,
    "models": models,
    "texts": texts,
    "sites": sites,
    "smoothing": smoothing,
    "weights": weights,
    "seen": seen,
}

if __name__ == "__main__":
    main()
