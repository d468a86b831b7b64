"""Calibration and rounding at the sizes of large models, on an accelerator.

    python benchmarks/gpu_calibration.py [--only calibration,gptq,quantize] [--device cuda:0] [--small] [--out FILE]

Three parts: the seconds of R1's optimisers at hidden size 4096 and 8192, with Whip on heavy-tailed activations, ratios
first; the seconds of GPTQ for the linears of a 7B and a 70B layer; ``quantize`` of two layers of 70B shape, learned
rotations included, under a cap of 24 GB of the device's memory. --small runs all of it at toy sizes: a check of the
script, not a measurement. Writes benchmarks/results/gpu_calibration.json, and keeps what it holds of other parts.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from large_checkpoint import generate
from torch import Tensor

import jointquant
from jointquant.backend.devices import resolve_device, synchronize
from jointquant.demo.story import CALIBRATION_TEXT
from jointquant.quantization.gptq import HessianSum, factorize, gptq
from jointquant.quantization.integer import IntFormat
from jointquant.recipe.rotations import LearnedRotation
from jointquant.recipe.training import training_of
from jointquant.rotations.hadamard import random_hadamard
from jointquant.rotations.learning import learn, unit_scale
from jointquant.rotations.objectives import whip
from report import machine

RESULT = Path(__file__).parent / "results" / "gpu_calibration.json"
CAP_BYTES = 24 * 10**9
OURS = {"optimizer": "newton_schulz", "learning_rate": 0.5}
PEERS = {"qr": {"optimizer": "qr"}, "cayley": {"optimizer": "cayley", "learning_rate": 1.0}}


@dataclass(frozen=True)
class Sizes:
    """What is measured: the numbers of a real run, or toy ones."""

    hidden: tuple[int, ...]
    tokens: int
    peer_steps: int
    own_steps: int
    layers: dict[str, dict[str, tuple[int, int]]]
    shape: dict[str, int]
    seqlen: int


REAL = Sizes(
    hidden=(4096, 8192),
    tokens=32768,
    peer_steps=5,
    own_steps=100,
    layers={
        "7B": {"qkv": (12288, 4096), "o": (4096, 4096), "gate_up": (22016, 4096), "down": (4096, 11008)},
        "70B": {"qkv": (10240, 8192), "o": (8192, 8192), "gate_up": (57344, 8192), "down": (8192, 28672)},
    },
    shape={"hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64, "num_key_value_heads": 8},
    seqlen=1024,
)
SMALL = Sizes(
    hidden=(64,),
    tokens=512,
    peer_steps=5,
    own_steps=20,
    layers={"toy": {"qkv": (96, 64), "down": (64, 160)}},
    shape={"hidden_size": 64, "intermediate_size": 160, "num_attention_heads": 4, "num_key_value_heads": 2},
    seqlen=64,
)


def main() -> None:
    """Run the three parts and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--only", default=",".join(PARTS), help=f"some of {', '.join(PARTS)}")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    device, sizes = resolve_device(arguments.device), SMALL if arguments.small else REAL
    result: dict[str, Any] = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    result |= {"command": "python benchmarks/gpu_calibration.py", **machine(str(device))}
    for part in arguments.only.split(","):
        result[part] = []
        for row in PARTS[part](sizes, device):
            result[part].append(shown(row))
            arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def shown(row: dict[str, Any]) -> dict[str, Any]:
    """Print a row when it is done."""
    print(json.dumps(row), flush=True)
    return row


def seconds_of(work: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """How long ``work`` takes on the device, and what it returns."""
    synchronize(device)
    start = time.perf_counter()
    done = work()
    synchronize(device)
    return time.perf_counter() - start, done


def optimizers(size: int, sizes: Sizes, device: torch.device) -> dict[str, Any]:
    """One hidden size: seconds of whole trainings; a peer's from a few steps, which all cost the same, scaled up."""
    samples, unseen = activations(size, sizes.tokens, device), activations(size, 4096, device, seed=1)
    start = random_hadamard(size, torch.Generator().manual_seed(0))

    def train(keys: dict[str, Any], steps: int) -> Tensor:
        training = training_of(LearnedRotation.model_validate(keys | {"steps": steps}), None)
        return learn(samples, start, training, torch.Generator().manual_seed(1)).rotation

    def loss(rotation: Tensor) -> float:
        return whip(unit_scale(unseen) * unseen @ rotation.to(unseen)).item() / size

    train(OURS, 2)  # what is loaded or compiled on first use
    own, rotation = seconds_of(lambda: train(OURS, sizes.own_steps), device)
    row: dict[str, Any] = {"hidden_size": size, "newton_schulz": {"seconds": own, "steps": sizes.own_steps}}
    row["newton_schulz"] |= {"loss": loss(rotation), "start_loss": loss(start)}
    for name, keys in PEERS.items():
        train(keys, 1)
        one, _ = seconds_of(lambda keys=keys: train(keys, 1), device)
        more, _ = seconds_of(lambda keys=keys: train(keys, 1 + sizes.peer_steps), device)
        step = (more - one) / sizes.peer_steps
        whole = one + (LearnedRotation().steps - 1) * step
        row[name] = {"seconds": whole, "seconds_per_step": step, "steps": LearnedRotation().steps}
    return {f"times_faster_than_{name}": row[name]["seconds"] / own for name in PEERS} | row


def activations(size: int, tokens: int, device: torch.device, seed: int = 0) -> Tensor:
    """Normed tokens [tokens, size]: an orthogonal mixture of sources of Student's t (3), the k-th of scale 1/k."""
    generator = torch.Generator(device).manual_seed(seed)
    sources = torch.randn(tokens, size, generator=generator, device=device)
    squares = torch.zeros_like(sources)
    for _ in range(3):
        squares += torch.randn(tokens, size, generator=generator, device=device).square_()
    sources /= (squares / 3).sqrt_().clamp_min_(1e-2) * torch.arange(1, size + 1, device=device)
    mixed = sources @ random_hadamard(size, torch.Generator().manual_seed(size)).float().to(device)
    return mixed / mixed.square().mean(-1, keepdim=True).sqrt()


def layer(name: str, linears: dict[str, tuple[int, int]], device: torch.device) -> dict[str, Any]:
    """Hessian, factor and rounding of each site of a layer; linears that share an input are one stack."""
    row: dict[str, Any] = {"layer": name, "seconds": 0.0, "sites": {}}
    for site, (rows, columns) in linears.items():
        x = torch.randn(8192, columns, device=device) * torch.rand(columns, device=device)
        total = HessianSum(columns, device)
        weight = 0.02 * torch.randn(rows, columns, device=device)
        summing, _ = seconds_of(lambda x=x, total=total: total.update(x), device)
        factoring, factor = seconds_of(lambda total=total: factorize(total.hessian(), 0.01), device)
        rounding, rounded = seconds_of(lambda w=weight, f=factor: gptq(w, f, IntFormat(4, True)), device)
        lost = (x @ (rounded.dequantize() - weight).T).square().mean() / (x @ weight.T).square().mean()
        row["sites"][site] = {"hessian": summing, "factor": factoring, "rounding": rounding, "lost": lost.item()}
        row["seconds"] += factoring + rounding
    return row


def capped_run(name: str, changes: tuple[str, ...], sizes: Sizes, device: torch.device) -> dict[str, Any]:
    """``quantize`` of two layers, with rotations learned by the preset, under the cap."""
    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(CAP_BYTES / torch.cuda.get_device_properties(device).total_memory)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    given = [
        f"calibration.source={CALIBRATION_TEXT}",
        f"calibration.seqlen={sizes.seqlen}",
        "calibration.num_samples=16",
    ]
    given += ["rotations.r1.num_tokens=16384", "rotations.r2.num_tokens=4096", *changes]
    row: dict[str, Any] = {"recipe": name, "layers": 2, "shape": sizes.shape, "cap_bytes": CAP_BYTES}
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder) / "model", 2, **sizes.shape)
        recipe = jointquant.load_recipe("w4a4kv4", given)
        out = Path(folder) / "a"
        try:
            budget = None if device.type == "cpu" else CAP_BYTES
            done = jointquant.quantize(Path(folder) / "model", out, recipe, device=str(device), device_budget=budget)
        except (torch.OutOfMemoryError, jointquant.InputError) as error:  # or the plan has refused it
            return row | {"failed": " ".join(str(error).split())[:160]}
    row |= {"seconds": done.seconds, "stages": done.stage_seconds}
    return row | ({"peak_device_bytes": torch.cuda.max_memory_allocated(device)} if device.type == "cuda" else {})


CAPPED = {"w4a4kv4, GPTQ for its refinement": ("refinement.steps=0", "weights.method=gptq"), "w4a4kv4": ()}
PARTS: dict[str, Callable[[Sizes, torch.device], Iterator[dict[str, Any]]]] = {
    "calibration": lambda sizes, device: (optimizers(size, sizes, device) for size in sizes.hidden),
    "gptq": lambda sizes, device: (layer(name, linears, device) for name, linears in sizes.layers.items()),
    "quantize": lambda sizes, device: (capped_run(name, each, sizes, device) for name, each in CAPPED.items()),
}

if __name__ == "__main__":
    main()
