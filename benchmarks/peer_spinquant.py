"""An own learner of rotations after SpinQuant's publication, for accuracy alone; runs in this package's environment.

For benchmarks/real_model_peers.py. Written from the paper (Liu et al., "SpinQuant: LLM quantization with learned
rotations", ICLR 2025, arXiv:2405.16406), not from its code. As there: R1, and one R2 for each layer, start as random
Hadamard matrices and are learned on the whole model's loss, the cross entropy of a text; R3 and R4 are online Hadamard
transforms; in training inputs, keys and values are quantized and weights are not, as for GPTQ; steps are Cayley's
transform, 100 of them, at a rate of 1.5 that falls linearly to 0; a step is shortened where its direction is long (Li,
Fuxin and Todorovic, ICLR 2020). Then GPTQ rounds the weights.

Unlike there: steps see 8 windows of 256 tokens each, of the 128 windows that GPTQ has, so that each is seen about six
times, where the paper has 800 windows of 2,048 tokens once.

The rest is this package's: its recipe ``dartquant`` takes the rotations from the file that is written here, and
quantizes as its other rows do. The last line it prints is JSON: seconds, those of learning, peak memory above that of
the interpreter with its imports, perplexity, and the loss of the first ten steps and of the last ten.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers
from peer_protocol import add_arguments, given_windows, peak_bytes, report
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import parametrize
from transformers import AutoTokenizer

import jointquant
from jointquant.rotations.bundle import Rotations
from jointquant.rotations.orthogonal import cayley_transform, orthogonal_factor, tangent
from jointquant.runtime.loading import load
from jointquant.seeds import generator, rounds
from jointquant.tuning.learned import in_training


@dataclass(frozen=True)
class Plan:
    """How long and how fast rotations are learned."""

    steps: int = 100
    batch: int = 8
    rate: float = 1.5
    seed: int = 0


class Turns(nn.Module):
    """What is learned: by which further rotation R1 [hidden, hidden] and each R2 [head_dim, head_dim] turn."""

    def __init__(self, hidden_size: int, head_dim: int, num_layers: int) -> None:
        super().__init__()
        self.r1 = nn.Parameter(torch.eye(hidden_size))
        self.r2 = nn.ParameterList(torch.eye(head_dim) for _ in range(num_layers))


class Turned(nn.Module):
    """A weight [out, in] or a bias [out] behind further rotations, of each block of its outputs, and of its inputs."""

    def __init__(self, outputs: Tensor | None, inputs: Tensor | None) -> None:
        super().__init__()
        self.outputs, self.inputs = outputs, inputs

    def forward(self, weight: Tensor) -> Tensor:
        """RᵀW R', Rᵀb."""
        if self.inputs is not None:
            weight = (weight.unflatten(1, (-1, len(self.inputs))) @ self.inputs).flatten(1)
        if self.outputs is not None:
            blocks = weight.unflatten(0, (-1, len(self.outputs)))
            weight = torch.einsum("bo...,or->br...", blocks, self.outputs).flatten(0, 1)
        return weight


@contextmanager
def turning(model: Any, turns: Turns) -> Iterator[None]:
    """While open, a rotated Llama of unquantized weights turns further, and gradients reach by how much."""
    handles = [
        model.model.embed_tokens.register_forward_hook(lambda _, __, embedded: embedded @ turns.r1),
        model.lm_head.register_forward_pre_hook(lambda _, arriving: (arriving[0] @ turns.r1.T,)),
    ]
    changed: dict[nn.Module, tuple[Tensor | None, Tensor | None]] = {}
    for layer, r2 in zip(model.model.layers, turns.r2, strict=True):
        attention, mlp = layer.self_attn, layer.mlp
        changed |= dict.fromkeys((attention.q_proj, attention.k_proj, mlp.gate_proj, mlp.up_proj), (None, turns.r1))
        changed |= {attention.v_proj: (r2, turns.r1), attention.o_proj: (turns.r1, r2), mlp.down_proj: (turns.r1, None)}
    for linear, (outputs, inputs) in changed.items():
        parametrize.register_parametrization(linear, "weight", Turned(outputs, inputs), unsafe=True)
        if linear.bias is not None:
            parametrize.register_parametrization(linear, "bias", Turned(outputs, None), unsafe=True)
    try:
        with in_training(model, "model.layers"):
            yield
    finally:
        for linear in changed:
            for name in ("weight", "bias"):
                if parametrize.is_parametrized(linear, name):
                    parametrize.remove_parametrizations(linear, name, leave_parametrized=False)
        for handle in handles:
            handle.remove()


def train(model: Any, turns: Turns, windows: Tensor, plan: Plan) -> list[float]:
    """Learn by how much to turn, on windows [n, T]; the cross entropy of each step."""
    losses, parameters = [], list(turns.parameters())
    draws = rounds(len(windows), plan.batch, generator(plan.seed, "spinquant"))
    for step, chosen in enumerate(islice(draws, plan.steps)):
        batch, rate = windows[chosen], plan.rate * (1 - step / plan.steps)
        scores = model(input_ids=batch, use_cache=False).logits[:, :-1]
        loss = cross_entropy(scores.flatten(0, 1), batch[:, 1:].flatten())
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for rotation, gradient in zip(parameters, gradients, strict=True):
                direction = tangent(rotation, gradient)
                length = rate / max(1.0, rate * float(torch.linalg.matrix_norm(direction, 1)))
                rotation.copy_(rotation @ cayley_transform(length * direction))
        losses.append(loss.item())
        print(step, losses[-1], flush=True)
    return losses


def learned(folder: Path, windows: Tensor, plan: Plan) -> tuple[Rotations, list[float]]:
    """The rotations of an artifact of unquantized weights, turned until its loss is low, and the losses."""
    model, start = load(folder, dtype="float32").requires_grad_(False), Rotations.load(folder)
    config = model.config
    turns = Turns(config.hidden_size, config.head_dim, config.num_hidden_layers)
    with turning(model, turns):
        losses = train(model, turns, windows, plan)
    r1, *r2 = (orthogonal_factor(parameter.detach().double()) for parameter in turns.parameters())
    turned = tuple(before @ after for before, after in zip(start.r2, r2, strict=True))
    return replace(start, r1=(start.r1[0] @ r1,), r2=turned, traces={}), losses


def main() -> None:
    """Learn, quantize, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--steps", type=int, default=Plan.steps)
    arguments = parser.parse_args()
    before, begun = peak_bytes(), time.perf_counter()
    windows, test = given_windows(arguments, AutoTokenizer.from_pretrained(arguments.model))
    drawn = {"source": arguments.calib, "num_samples": len(windows), "seqlen": windows.shape[1]}
    protocol = [f"calibration.{name}={value}" for name, value in drawn.items()]
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        unquantized = jointquant.load_recipe("quarot", [*protocol, "weights.num_bits=16"])
        jointquant.quantize(arguments.model, place / "start", unquantized)
        started = time.perf_counter()
        rotations, losses = learned(place / "start", windows, Plan(arguments.steps))
        learning = time.perf_counter() - started
        rotations.save(place)
        recipe = jointquant.load_recipe("dartquant", [*protocol, f"rotations.from={place}"])
        jointquant.quantize(arguments.model, place / "artifact", recipe)
        result: dict[str, Any] = {
            "seconds": time.perf_counter() - begun,
            "learning_seconds": learning,
            "peak_bytes": peak_bytes() - before,
            "losses": [sum(some) / len(some) for some in (losses[:10], losses[-10:])],
            "versions": {each.__name__: each.__version__ for each in (torch, transformers)},
        }
        report(arguments, load(place / "artifact", dtype="float32"), test, result)


if __name__ == "__main__":
    main()
