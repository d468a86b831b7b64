"""The table of docs/where.md: every preset in every runtime that is here, with its perplexity and what verify says.

    python benchmarks/where.py                    # the embedded model; llama-cpp-python and `vllm` where they are found
    python benchmarks/where.py --only w4a16,gguf

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
    chosen = parser.parse_args().only
    presets = chosen.split(",") if chosen else [name for name in preset_names() if "70b" not in name]
    old = json.loads(RESULT.read_text()) if RESULT.exists() else {"rows": []}
    rows = [row for row in old["rows"] if row["recipe"] not in presets]
    for preset in presets:
        with tempfile.TemporaryDirectory() as folder:
            for row in measured(preset, Path(folder)):
                rows.append({"recipe": preset} | row)
                print(rows[-1], flush=True)
        result = {
            "command": "python benchmarks/where.py",
            "date": date.today().isoformat(),
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__} | others(),
            "rows": sorted(rows, key=lambda row: preset_names().index(row["recipe"])),
        }
        RESULT.write_text(json.dumps(result, indent=1) + "\n")


def others() -> dict[str, str]:
    """Versions of the runtimes that are here."""
    if importlib.util.find_spec("llama_cpp") is None:
        return {}
    import llama_cpp

    return {"llama-cpp-python": llama_cpp.__version__}


def measured(preset: str, folder: Path) -> Iterator[dict[str, object]]:
    """Rows of one preset: the artifact, then each export, in each runtime that is here."""
    artifact = folder / "artifact"
    try:
        quantize(DEMO / "model", artifact, load_recipe(preset, CALIBRATION))
        changes: tuple[str, ...] = ()
    except InputError:
        quantize(DEMO / "model", artifact, load_recipe(preset, [*CALIBRATION, *GROUPS]))
        changes = GROUPS
    about: dict[str, object] = {"changes": list(changes)}
    for dtype in ("float32", "bfloat16"):
        yield about | row("artifact", artifact, "transformers", dtype, partial_transformers(artifact, dtype))
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
