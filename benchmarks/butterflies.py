"""What a butterfly as R4 is worth beside blocks and beside the Hadamard transform alone.

    python benchmarks/butterflies.py demo
    python benchmarks/butterflies.py stories260k MODEL TEXT.txt
    python benchmarks/butterflies.py smollm2 MODEL TEXT.txt --windows 16 --layers-alone

R4 is learned as the recipe ``w4a4kv16`` has it, and as a butterfly by two objectives. First at the down projections of
three layers alone: the squared error of their outputs on text that was not seen, in parts of the outputs', with inputs
and weights at 4 bits (the range of each token; weights to nearest). Then the whole model by ``w4a4kv16`` without
refinement, unless ``--layers-alone`` leaves that out. Calibrates on the first 150,000 characters of TEXT and tests on
the rest; the embedded model has the demo's texts. Writes benchmarks/results/butterflies_<model>.json.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from inner_rotations import inputs_of
from stories260k import CALIBRATION_CHARACTERS
from torch import Tensor
from transformers import AutoModelForCausalLM

import jointquant
from jointquant.demo.story import CALIBRATION_TEXT, HELDOUT_TEXT, MODEL
from jointquant.quantization.integer import IntFormat
from jointquant.quantization.ranges import DynamicRange
from jointquant.recipe.recipe import Recipe, load_recipe
from jointquant.recipe.rotations import ButterflyInnerRotation, LearnedInnerRotation
from jointquant.recipe.training import training_of
from jointquant.rotations.blocks import block_products, largest_block, rotate_blocks
from jointquant.rotations.butterflies import num_stages, turn
from jointquant.rotations.butterfly_learning import learn_butterfly, of_output, of_tokens
from jointquant.rotations.hadamard import HadamardTransform
from jointquant.rotations.learning import learn_blocks
from jointquant.rotations.objectives import OBJECTIVES
from jointquant.rotations.optimizers import RotationProblem, Schedule, newton_schulz
from jointquant.rotations.reconstruction import Reconstruction, Rounding
from jointquant.seeds import generator, rounds
from report import Result

RESULTS = Path(__file__).parent / "results"
BUTTERFLY = "rotations.r4.kind=butterfly"
BLOCKS = "Hadamard, then blocks of 64, range"
KINDS = {
    "Hadamard": ("rotations.r4.kind=hadamard",),
    BLOCKS: (),
    "Hadamard, then a butterfly, range": (BUTTERFLY, "rotations.r4.objective=range"),
    "Hadamard, then a butterfly, reconstruction": (BUTTERFLY,),
}
INPUTS, WEIGHTS = DynamicRange(IntFormat(4, symmetric=False)), IntFormat(4, symmetric=True)
SEQLEN, HELD_WINDOWS = 256, 16


@dataclass(frozen=True)
class Down:
    """A down projection behind the Hadamard transform: tokens [tokens, n], centred, and what its output is to be."""

    seen: Tensor
    unseen: Tensor
    site: Reconstruction


def downs_of(folder: Path, calibration: Path, test: Path, windows: int) -> dict[int, Down]:
    """Those of a layer near the start, in the middle and near the end."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    count = model.config.num_hidden_layers
    layers = sorted({1, count // 2, count - 1})
    seen = inputs_of(model, folder, calibration, windows, layers)
    unseen = inputs_of(model, folder, test, HELD_WINDOWS, layers)
    found = {}
    for layer in layers:
        hadamard, mean = HadamardTransform.of_size(seen[layer].shape[1]), seen[layer].mean(0)
        weight = hadamard.apply(model.model.layers[layer].mlp.down_proj.weight.detach().double()).float()
        site = Reconstruction(weight, INPUTS, Rounding(WEIGHTS, "mse", torch.float32))
        found[layer] = Down(hadamard.apply(seen[layer] - mean), hadamard.apply(unseen[layer] - mean), site)
    return found


@torch.no_grad()
def error_of(down: Down, recipe: Recipe, purpose: str) -> float:
    """Of the output on unseen tokens, R4 learned on the seen ones as a recipe says."""
    settings, batches = recipe.rotations.r4, generator(0, purpose)
    x, weight = down.unseen, down.site.weight
    if isinstance(settings, LearnedInnerRotation):
        size = x.shape[1]
        block = largest_block(size, settings.most)
        start = torch.eye(block).repeat(size // block, 1, 1)
        with torch.enable_grad():
            found = learn_blocks(taken(down, settings.num_tokens), start, training_of(settings, INPUTS), batches)
        rotation = found.rotation.float()
        return down.site.loss(x, rotate_blocks(x, rotation), rotate_blocks(weight, rotation))[0].item()
    if isinstance(settings, ButterflyInnerRotation):
        name = settings.objective
        loss = of_output(down.site) if name == "reconstruction" else of_tokens(OBJECTIVES[name](INPUTS))
        schedule = Schedule(settings.steps, settings.learning_rate, settings.momentum)
        sample = taken(down, settings.num_tokens)
        angles = learn_butterfly(sample, loss, schedule, settings.batch_tokens, batches).angles.float()
        cosines, sines = angles.cos(), angles.sin()
        return down.site.loss(x, turn(x, cosines, sines), turn(weight, cosines, sines))[0].item()
    return down.site.loss(x, x, weight)[0].item()


@torch.no_grad()
def error_of_blocks(down: Down, recipe: Recipe, purpose: str) -> float:
    """Of blocks that are learned for the output, which is no setting: whether it is the objective that matters."""
    settings = recipe.rotations.r4
    assert isinstance(settings, LearnedInnerRotation)
    x, weight, size = taken(down, settings.num_tokens), down.site.weight, down.seen.shape[1]
    block, order = largest_block(size, settings.most), rounds(len(x), settings.batch_tokens, generator(0, purpose))

    def closed(rotations: Tensor, _: int) -> tuple[Tensor, Tensor]:
        y, turned = rotate_blocks(batch := x[next(order)], rotations), rotate_blocks(weight, rotations)
        loss, by_y, by_turned = down.site.loss(batch, y, turned)
        return loss, block_products(y, by_y, block) + block_products(turned, by_turned, block)

    def value(rotations: Tensor, step: int) -> Tensor:
        return closed(rotations, step)[0]

    start, schedule = torch.eye(block).repeat(size // block, 1, 1), training_of(settings, INPUTS).schedule
    found = newton_schulz(RotationProblem(value, torch.ones(()), closed), start, schedule).rotation.float()
    unseen = down.unseen
    return down.site.loss(unseen, rotate_blocks(unseen, found), rotate_blocks(weight, found))[0].item()


def taken(down: Down, tokens: int) -> Tensor:
    """At most so many tokens, evenly spaced."""
    return down.seen[:: -(-len(down.seen) // tokens)]


def stored_bits(recipe: Recipe, down: Down) -> float:
    """Bits for each weight of the down projection."""
    settings, (out, size) = recipe.rotations.r4, down.site.weight.shape
    if isinstance(settings, LearnedInnerRotation):
        return 8 * largest_block(size, settings.most) / out
    return 16 * num_stages(size) / 2 / out if isinstance(settings, ButterflyInnerRotation) else 0.0


def main() -> None:
    """Measure one model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=("demo", "stories260k", "smollm2"))
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("text", nargs="?", type=Path)
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--layers-alone", action="store_true")
    arguments = parser.parse_args()
    seeds, command = [int(seed) for seed in arguments.seeds.split(",")], f"butterflies.py {arguments.name}"
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        model, calibration, test = MODEL, CALIBRATION_TEXT, HELDOUT_TEXT
        if arguments.name != "demo":
            if arguments.model is None or arguments.text is None:
                parser.error(f"{arguments.name}: expected a model and a text")
            text, command = arguments.text.read_text(encoding="utf-8"), f"{command} MODEL TEXT.txt"
            model, calibration, test = arguments.model, folder / "calibration.txt", folder / "test.txt"
            calibration.write_text(text[:CALIBRATION_CHARACTERS], encoding="utf-8")
            test.write_text(text[CALIBRATION_CHARACTERS:], encoding="utf-8")
        changes = [f"calibration.source={calibration}", f"calibration.num_samples={arguments.windows}"]
        changes += [f"calibration.seqlen={SEQLEN}", "refinement.steps=0"]
        recipes = {name: load_recipe("w4a4kv16", [*changes, *own]) for name, own in KINDS.items()}
        rows = at_sites(recipes, downs_of(model, calibration, test, arguments.windows))
        facts: dict[str, Any] = {"model": arguments.name, "windows": arguments.windows}
        if arguments.layers_alone:
            command += f" --windows {arguments.windows} --layers-alone"
        else:
            measured = {"texts": (str(test),), "eval_seqlen": SEQLEN, "max_tokens": HELD_WINDOWS * 4 * SEQLEN}
            found = jointquant.compare(model, recipes, folder / "out", seeds=seeds, **measured)
            facts |= {"seeds": seeds, "perplexity": found.reference["perplexity"][str(test)]}
            for row in found.rows:
                figures = {key: row[key][str(test)] for key in ("perplexity", "perplexity_min", "perplexity_max")}
                figures |= {"kl": row["divergence"][str(test)], "seconds": row["seconds"], "bits": row["bits"]}
                rows[row["recipe"]] |= figures
        path = RESULTS / f"butterflies_{arguments.name}.json"
        result = Result(path, f"python benchmarks/{command}", **facts)
        for name, row in rows.items():
            result.add({"rotation": name} | row)


def at_sites(recipes: dict[str, Recipe], downs: dict[int, Down]) -> dict[str, dict[str, Any]]:
    """By recipe: the errors by layer, the bits that are stored, and the mean seconds of a training."""
    found = {}
    ways = {name: (error_of, recipe) for name, recipe in recipes.items()}
    ways["Hadamard, then blocks of 64, reconstruction"] = error_of_blocks, recipes[BLOCKS]
    for name, (error, recipe) in ways.items():
        start = time.perf_counter()
        errors = {layer: error(down, recipe, f"r4 {layer}") for layer, down in downs.items()}
        seconds = (time.perf_counter() - start) / len(downs)
        found[name] = {"errors": errors, "stored_bits": stored_bits(recipe, next(iter(downs.values())))}
        found[name]["training"] = seconds
        print(name, found[name], flush=True)
    return found


if __name__ == "__main__":
    main()
