"""The table of docs/where.md: every preset in every runtime that is here, with its perplexity and what verify says.

An artifact has a row with vLLM, too: by our plugin, which must be in the environment of the command `vllm`.

    python benchmarks/where.py                    # the embedded model; llama-cpp-python and `vllm` where they are found
    python benchmarks/where.py --only w4a16,gguf
    python benchmarks/where.py --only w4a4kv4 --steps 20    # whatever it learns for 20 steps at most: rows say so

Writes benchmarks/results/where.json, a preset at a time: rows of presets that are not run again stay. Perplexity on the
first 16 windows of 128 tokens of the embedded held-out text, from what each runtime says of each token.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from datetime import date
from pathlib import Path

import torch
import transformers

import jointquant.demo
from jointquant import InputError, export_artifact, quantize
from jointquant.fingerprint.carried import fingerprint_at
from jointquant.recipe.catalogue import preset_names
from jointquant.recipe.recipe import load_recipe
from jointquant.runtime.loading import load_tokenizer
from jointquant.verification.in_llama_cpp import InLlamaCpp
from jointquant.verification.in_transformers import InTransformers
from jointquant.verification.runtime import Runtime, observe
from jointquant.verification.verdict import judge
from jointquant.verification.verify import quantizes_inputs
from jointquant.verification.vllm_server import vllm_at

DEMO = Path(jointquant.demo.__file__).parent
RESULT = Path(__file__).parent / "results" / "where.json"
SEQLEN, WINDOWS = 128, 16
CALIBRATION = (
    f"calibration.source={DEMO / 'calibration.txt'}",
    "calibration.num_samples=32",
    f"calibration.seqlen={SEQLEN}",
)
GROUPS = ("weights.group_size=32",)
"""Where a preset's groups of 128 do not divide the embedded model's rows."""

Opened = AbstractContextManager[Runtime]


def main() -> None:
    """Measure, and write the result file after each preset."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="presets, separated by commas")
    parser.add_argument("--steps", type=int, help="the most that rotations and rounding are learned for")
    given = parser.parse_args()
    chosen = given.only
    presets = chosen.split(",") if chosen else [name for name in preset_names() if "70b" not in name]
    old = json.loads(RESULT.read_text()) if RESULT.exists() else {"rows": []}
    rows = [row for row in old["rows"] if row["recipe"] not in presets]
    versions = {"torch": torch.__version__, "transformers": transformers.__version__} | others()
    kept = old["versions"] if rows else {}
    if any(kept.get(name, version) != version for name, version in versions.items()):
        parser.error(f"rows of other presets were made with {kept}, and here is {versions}: run all of them")
    versions = kept | versions  # rows that stay may be of a runtime that is not here
    for preset in presets:
        with tempfile.TemporaryDirectory() as folder:
            for row in measured(preset, Path(folder), given.steps):
                rows.append({"recipe": preset} | row)
                print(rows[-1], flush=True)
        result = {
            "command": "python benchmarks/where.py",
            "date": date.today().isoformat(),
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
            "versions": versions,
            "rows": sorted(rows, key=lambda row: preset_names().index(row["recipe"])),
        }
        RESULT.write_text(json.dumps(result, indent=1) + "\n")


def others() -> dict[str, str]:
    """Versions of the runtimes that are here."""
    found = {}
    if importlib.util.find_spec("llama_cpp") is not None:
        import llama_cpp

        found["llama-cpp-python"] = llama_cpp.__version__
    if command := shutil.which("vllm"):
        said = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
        found["vLLM"] = said.stdout.split()[-1]
    return found


def measured(preset: str, folder: Path, steps: int | None) -> Iterator[dict[str, object]]:
    """Rows of one preset: the artifact, then each export, in each runtime that is here."""
    artifact = folder / "artifact"
    changes = [] if steps is None else fewer_steps(preset, steps)
    try:
        quantize(DEMO / "model", artifact, load_recipe(preset, [*CALIBRATION, *changes]))
    except InputError:
        changes = [*changes, *GROUPS]
        quantize(DEMO / "model", artifact, load_recipe(preset, [*CALIBRATION, *changes]))
    about: dict[str, object] = {"changes": changes}
    for dtype in ("float32", "bfloat16"):
        yield about | row("artifact", artifact, "transformers", dtype, partial_transformers(artifact, dtype))
    if shutil.which("vllm"):
        yield about | row("artifact", artifact, "vLLM", "float32", lambda: vllm_at(artifact, "float32", "float32"))
    for form in ("dense", "compressed-tensors", "gguf"):
        out = folder / form
        try:
            export_artifact(artifact, form, out, dequantized=form == "dense")
        except InputError:
            continue  # the page says where it does not go: it has no row
        if form == "gguf" and importlib.util.find_spec("llama_cpp") is not None:
            yield about | row(form, out, "llama.cpp", "", lambda out=out: InLlamaCpp(out, SEQLEN))  # type: ignore[misc]
        elif form != "gguf":
            yield about | row(form, out, "transformers", "float32", partial_transformers(out, "float32"))
            if shutil.which("vllm"):
                arithmetic = "int8" if quantizes_inputs(out) else "float32"
                serve = lambda out=out, arithmetic=arithmetic: vllm_at(out, arithmetic, "float32")  # noqa: E731
                yield about | row(form, out, "vLLM", "float32", serve)


def fewer_steps(preset: str, steps: int) -> list[str]:
    """Changes of a preset that let it learn for so many steps at most."""
    recipe = load_recipe(preset)
    rotations = {f"rotations.{name}": getattr(recipe.rotations, name) for name in ("r1", "r2", "r3", "r4")}
    learned = {name: kind.steps for name, kind in rotations.items() if getattr(kind, "steps", None) is not None}
    if recipe.refinement.enabled:
        learned["refinement"] = recipe.refinement.steps
    return [f"{name}.steps={steps}" for name, count in learned.items() if count > steps]


def partial_transformers(folder: Path, dtype: str) -> Callable[[], Opened]:
    """transformers with a folder, when it is asked for."""
    return lambda: nullcontext(InTransformers(folder, dtype, "cpu", "check"))


def row(form: str, path: Path, runtime: str, dtype: str, opened: Callable[[], Opened]) -> dict[str, object]:
    """What a runtime makes of the held-out text and of the probe; or why it does not run it."""
    found: dict[str, object] = {"format": form, "runtime": runtime, "dtype": dtype, "device": "CPU"}
    known = fingerprint_at(path)
    try:
        with opened() as model:
            verdict = judge(known, observe(model, known))
            losses = [-score for window in windows() for score in model.log_probabilities(window)]
    except InputError as error:
        return found | {"refused": " ".join(str(error).replace(str(path), "it").split())[:300]}
    return found | {
        "perplexity": math.exp(sum(losses) / len(losses)),
        "passed": verdict.passed,
        "faults": list(verdict.words),
        "difference": verdict.difference,
        "tolerance": verdict.tolerance,
    }


def windows() -> list[list[int]]:
    """Of the held-out text."""
    ids = load_tokenizer(DEMO / "model")((DEMO / "heldout.txt").read_text(encoding="utf-8")).input_ids
    return [list(ids[start : start + SEQLEN]) for start in range(0, SEQLEN * WINDOWS, SEQLEN)]


if __name__ == "__main__":
    main()
