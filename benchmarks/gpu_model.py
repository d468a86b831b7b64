"""Small models quantized, reloaded and evaluated on the GPU, beside the same on the CPU.

    python benchmarks/gpu_model.py [--models FOLDER] [--only embedded,stories260k] [--out FILE]

The embedded model, and stories260k where FOLDER (``../shared/models``) has it. A row is a recipe: perplexities in
float32 of the artifact that each device made, evaluated on the same device with the kernels that run by themselves and
with the reference, and of the CPU's artifact on the GPU, where all that differs is who computes. Writes
benchmarks/results/gpu_model.json, and keeps what it holds of other models from the same machine and versions.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jointquant
from jointquant.backend.devices import resolve_device
from jointquant.demo.story import CALIBRATION_TEXT, HELDOUT_TEXT, MODEL
from report import Result

RESULT = Path(__file__).parent / "results" / "gpu_model.json"
SHARED = Path(__file__).parents[2] / "shared" / "models"
RECIPES = {
    "W4A16": ("fp16", ("weights.num_bits=4",)),
    "W4A8": ("fp16", ("weights.num_bits=4", "activations.num_bits=8")),
    "dartquant": ("dartquant", ()),
    "w4a4kv4": ("w4a4kv4", ()),
}
CALIBRATION = (f"calibration.source={CALIBRATION_TEXT}", "calibration.num_samples=16", "calibration.seqlen=256")
MOST_TOKENS = 8000


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=SHARED)
    parser.add_argument("--only", default="embedded,stories260k")
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    device = str(resolve_device("auto"))
    models = {"embedded": MODEL, "stories260k": arguments.models / "stories260k"}
    asked = {name: models[name] for name in arguments.only.split(",") if models[name].is_dir()}
    result = Result(arguments.out, "python benchmarks/gpu_model.py", device)
    result.keep(lambda row: row["model"] not in asked)
    for name, model in asked.items():
        for recipe in RECIPES:
            for row in measured(model, recipe, device):
                result.add({"model": name, "recipe": recipe, **row})


def measured(model: Path, name: str, device: str) -> Iterator[dict[str, Any]]:
    """One recipe on the device, then on the CPU."""
    preset, changes = RECIPES[name]
    recipe = jointquant.load_recipe(preset, [*CALIBRATION, *changes])
    with tempfile.TemporaryDirectory() as folder:
        for made_on in dict.fromkeys((device, "cpu")):
            artifact = Path(folder) / made_on.partition(":")[0]
            done = jointquant.quantize(model, artifact, recipe, device=made_on, dtype="float32")
            row: dict[str, Any] = {"made_on": made_on, "seconds": done.seconds}
            for run_on in dict.fromkeys((made_on, device)):
                for kernels in ("auto", "reference"):
                    row[f"{run_on.partition(':')[0]} {kernels}"] = perplexity(artifact, run_on, kernels)
            yield row


def perplexity(artifact: Path, device: str, kernels: str) -> float:
    """On the held-out text."""
    found = jointquant.evaluate(
        artifact,
        (str(HELDOUT_TEXT),),
        seqlen=256,
        max_tokens=MOST_TOKENS,
        device=device,
        dtype="float32",
        kernels=kernels,
    )
    (value,) = found.perplexity.values()
    return value


if __name__ == "__main__":
    main()
