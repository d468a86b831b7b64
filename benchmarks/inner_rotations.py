"""What a learned R4 could gain: the rounding noise at down_proj's input behind several rotations, on held-out text.

    python benchmarks/inner_rotations.py [--layers 1,3,5] [--steps 200]

Every rotation starts as the plain Hadamard transform and is trained for the range of the tokens (Adam on angles, or on
skew-symmetric matrices under the exponential) on the inputs that the embedded model's down projections see on the
demo's calibration text. Noise is ‖x̂ − x‖²/‖x‖² of centred inputs at 4 bits, one asymmetric range per token, at the
best clip ratio, or the best for each token. Writes benchmarks/results/inner_rotations.json.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from jointquant.demo.story import CALIBRATION_TEXT, HELDOUT_TEXT, MODEL, NUM_SAMPLES, SEQLEN
from jointquant.quantization.integer import IntFormat, fake_quantize
from jointquant.quantization.ranges import CLIP_RATIOS
from jointquant.rotations.hadamard import HadamardTransform
from jointquant.rotations.objectives import token_range
from report import machine

RESULT = Path(__file__).parent / "results" / "inner_rotations.json"
FORMAT = IntFormat(4, symmetric=False)
HELD_WINDOWS, BATCH, RATE = 16, 1024, 0.02
OWN = "Hadamard, the best clip ratio for each token"


@dataclass(frozen=True)
class Rotation:
    """A family of rotations of n channels.

    Attributes:
        name: in words.
        shapes: of its parameters, which are 0 at the Hadamard transform.
        apply: (x [tokens, n] behind the transform ``first``, parameters) → [tokens, n].
        first: whether the Hadamard transform comes before it; else it is part of it.
        numbers: how many a layer stores.
    """

    name: str
    shapes: list[tuple[int, ...]]
    apply: Callable[[Tensor, list[Tensor]], Tensor]
    numbers: int
    first: bool = True


def turn(parameters: Tensor) -> Tensor:
    """Rotations of [..., b, b] parameters."""
    return torch.linalg.matrix_exp(parameters - parameters.mT)


def blocks(size: int, block: int) -> Rotation:
    """A rotation for each ``block`` channels; all of them: a dense one."""
    count = size // block

    def apply(x: Tensor, parameters: list[Tensor]) -> Tensor:
        return torch.einsum("tkb,kbc->tkc", x.unflatten(1, (count, block)), turn(parameters[0])).flatten(1)

    name = f"Hadamard, then blocks of {block}" if count > 1 else "Hadamard, then dense"
    return Rotation(name, [(count, block, block)], apply, count * block * block)


def kronecker(left: int, right: int) -> Rotation:
    """A ⊗ B."""

    def apply(x: Tensor, parameters: list[Tensor]) -> Tensor:
        a, b = map(turn, parameters)
        return torch.einsum("tab,ac,bd->tcd", x.unflatten(1, (left, right)), a, b).flatten(1)

    shapes: list[tuple[int, ...]] = [(left, left), (right, right)]
    return Rotation(f"Hadamard, then {left} ⊗ {right}", shapes, apply, left * left + right * right)


def butterfly(size: int) -> Rotation:
    """log₂ n stages of planes; at angles of π/4 they are the Hadamard transform."""
    stages = size.bit_length() - 1

    def apply(x: Tensor, parameters: list[Tensor]) -> Tensor:
        for stage, angles in enumerate(parameters[0] + math.pi / 4):
            half = 1 << stage
            a, b = x.unflatten(1, (-1, 2, half)).unbind(2)
            cosine, sine = (f(angles).view(-1, half) for f in (torch.cos, torch.sin))
            x = torch.stack([a * cosine + b * sine, a * sine - b * cosine], 2).flatten(1)
        return x

    return Rotation("butterfly", [(stages, size // 2)], apply, stages * size // 2, first=False)


def trained(rotation: Rotation, x: Tensor, steps: int) -> list[Tensor]:
    """The parameters that give tokens [tokens, n] the least ranges."""
    parameters = [torch.zeros(shape, requires_grad=True) for shape in rotation.shapes]
    optimizer = torch.optim.Adam(parameters, lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator, scale = torch.Generator().manual_seed(0), x.square().mean()
    for _ in range(steps):
        batch = x[torch.randperm(len(x), generator=generator)[:BATCH]]
        optimizer.zero_grad()
        (token_range(rotation.apply(batch, parameters)) / scale).backward()
        optimizer.step()
        schedule.step()
    return [parameter.detach() for parameter in parameters]


def noise(x: Tensor, own_ratios: bool = False) -> float:
    """Of tokens [tokens, n], at the ratio that is best for all of them, or for each."""
    errors = torch.stack([(fake_quantize(x, FORMAT, ratio) - x).square().sum(-1) for ratio in CLIP_RATIOS])
    least = errors.amin(0).sum() if own_ratios else errors.sum(1).amin()
    return (least / x.square().sum()).item()


def inputs_of(model: Any, folder: Path, text: Path, windows: int, layers: list[int]) -> dict[int, Tensor]:
    """What the down projections of some layers read: [tokens, n] each. ``folder`` has the tokenizer."""
    tokens = AutoTokenizer.from_pretrained(folder)(text.read_text(), return_tensors="pt").input_ids[0]
    found: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    hooks = [
        model.model.layers[layer].mlp.down_proj.register_forward_pre_hook(
            lambda _, inputs, seen=seen: seen.append(inputs[0].flatten(0, 1))
        )
        for layer, seen in found.items()
    ]
    with torch.no_grad():
        model.model(tokens[: windows * SEQLEN].view(windows, SEQLEN))
    for hook in hooks:
        hook.remove()
    return {layer: torch.cat(seen) for layer, seen in found.items()}


def main() -> None:
    """Train, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", default="1,3,5")
    parser.add_argument("--steps", type=int, default=200)
    arguments = parser.parse_args()
    layers = [int(layer) for layer in arguments.layers.split(",")]
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    seen = inputs_of(model, MODEL, CALIBRATION_TEXT, NUM_SAMPLES, layers)
    unseen = inputs_of(model, MODEL, HELDOUT_TEXT, HELD_WINDOWS, layers)
    size = seen[layers[0]].shape[1]
    hadamard = HadamardTransform.of_size(size)
    means = {layer: x.mean(0) for layer, x in seen.items()}
    plain = {layer: noise(hadamard.apply(unseen[layer] - means[layer])) for layer in layers}
    own = {layer: noise(hadamard.apply(unseen[layer] - means[layer]), own_ratios=True) for layer in layers}
    rows = [{"rotation": name, "numbers": 0, "noise": found} for name, found in (("Hadamard", plain), (OWN, own))]
    for rotation in (
        blocks(size, size),
        blocks(size, 64),
        blocks(size, 32),
        kronecker(size // 64, 64),
        butterfly(size),
    ):
        found = {}
        for layer in layers:
            x, y = (part[layer] - means[layer] for part in (seen, unseen))
            x, y = (hadamard.apply(part) if rotation.first else part for part in (x, y))
            found[layer] = noise(rotation.apply(y, trained(rotation, x, arguments.steps)))
        rows.append({"rotation": rotation.name, "numbers": rotation.numbers, "noise": found})
        print(json.dumps(rows[-1], ensure_ascii=False), flush=True)
    weights = sum(p.numel() for name, p in model.model.layers[0].named_parameters() if "proj" in name)
    result = {
        "command": "python benchmarks/inner_rotations.py",
        **machine(),
        "weights_of_a_layer": weights,
        "rows": rows,
    }
    RESULT.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
