"""The optimisers of R1 side by side: seconds to the loss that ``qr`` ends at, and perplexity on the embedded model.

    python benchmarks/optimizers.py [--cases embedded,1024,2048] [--seeds 3] [--repeats 5]

A case trains R1 with Whip on one sample: the embedded model's residual sites, or heavy-tailed correlated activations
of hidden size 1024 or 2048. ``qr`` and ``cayley`` run once with the default schedule; the seconds of a whole run are
its steps times the median step. In between, evenly spread over the run of ``qr``, ours runs ``--repeats`` times from
start to float64, and its median counts. The loss is Whip per channel: of the tokens trained on (the first 4096 of
them), and of as many that no run has seen. Writes benchmarks/results/optimizers.json, which keeps the rows of the cases
that are not run anew, and with ``--seeds 0`` the perplexities.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import jointquant
from jointquant.calibration.calibrate import walk
from jointquant.calibration.learners import ResidualLearner, residual_sampler
from jointquant.calibration.training import ModelSizes, ResidualTraining
from jointquant.calibration.windows import calibration_set
from jointquant.demo.story import CALIBRATION_TEXT, HELDOUT_TEXT, MODEL, NUM_SAMPLES, SEQLEN
from jointquant.progress import Silent
from jointquant.recipe.recipe import Recipe
from jointquant.recipe.rotations import LearnedRotation
from jointquant.recipe.training import training_of
from jointquant.rotations.hadamard import random_hadamard
from jointquant.rotations.learning import Training, learn, unit_scale
from jointquant.rotations.objectives import whip
from jointquant.rotations.optimizers import Learned, RotationProblem, Schedule
from jointquant.run.opening import open_subject
from jointquant.run.workspace import Workspace
from report import machine

RESULT = Path(__file__).parent / "results" / "optimizers.json"
HELD = 4096
PEERS = {"qr": {"optimizer": "qr"}, "cayley": {"optimizer": "cayley", "learning_rate": 1.0}}
OURS = {
    "embedded": {"learning_rate": 0.5, "steps": 100, "momentum": 0.85, "batch_tokens": 2048},
    "1024": {"learning_rate": 0.13, "steps": 135, "momentum": 0.86},
    "2048": {"learning_rate": 0.13, "steps": 85, "momentum": 0.85},
}
"""By case; a step is in radians, and what suits falls with the number of planes."""
TOKENS = {1024: 16384, 2048: 16384}
BATCH = {1024: 1024, 2048: 1024}
"""Of all optimisers; the embedded model has the default for all but ours."""


@dataclass(frozen=True)
class Case:
    """A sample to train on [tokens, n], as many tokens to test on as ``HELD``, and the tokens of a step."""

    name: str
    samples: Tensor
    unseen: Tensor
    batch_tokens: int

    def losses(self, rotation: Tensor) -> dict[str, float]:
        """Whip per channel of a rotation [n, n]."""
        scale, size = unit_scale(self.samples), rotation.shape[-1]
        seen = self.samples[:HELD]
        return {
            name: whip(scale * x @ rotation.float()).item() / size
            for name, x in (("loss", seen), ("unseen", self.unseen))
        }


def main() -> None:
    """Measure the cases and the perplexities; write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default="embedded,1024,2048")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    old = json.loads(arguments.out.read_text()) if arguments.out.exists() else {"rows": [], "perplexity": []}
    rows = {row["case"]: row for row in old["rows"]}
    for name in arguments.cases.split(","):
        case = embedded() if name == "embedded" else heavy_tailed(int(name))
        rows[case.name] = compare(case, {"optimizer": "newton_schulz"} | OURS[name], arguments.repeats)
        print(json.dumps(rows[case.name]), flush=True)
    ours = {"newton_schulz": {"optimizer": "newton_schulz"} | OURS["embedded"]}
    found = [perplexities(name, keys, arguments.seeds) for name, keys in (PEERS | ours).items() if arguments.seeds]
    result = {"command": "python benchmarks/optimizers.py", **machine(), "repeats": arguments.repeats}
    result |= {"rows": list(rows.values()), "perplexity": found or old["perplexity"]}
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def compare(case: Case, keys_of_ours: dict[str, Any], repeats: int) -> dict[str, Any]:
    """One case: ratios first, then what they were made of; the seconds of ours are measured within qr's run."""
    own_seconds: list[float] = []
    found: list[Learned] = []

    def ours(_: int) -> None:
        start = time.perf_counter()
        found.append(train(case, keys_of_ours))
        own_seconds.append(time.perf_counter() - start)

    peers = {}
    for name, keys in PEERS.items():
        steps = LearnedRotation.model_validate(keys).steps
        marks = {round((i + 0.5) * steps / repeats): ours for i in range(repeats)} if name == "qr" else {}
        step_seconds, learned = timed(case, keys, marks)
        peers[name] = {"seconds": steps * step_seconds, "steps": steps, **case.losses(learned.rotation)}
    own = {"seconds": statistics.median(own_seconds), "steps": len(found[0].losses), **case.losses(found[0].rotation)}
    identity = torch.eye(len(found[0].rotation), dtype=torch.float64)
    return {
        "case": case.name,
        **{f"times_faster_than_{name}": peer["seconds"] / own["seconds"] for name, peer in peers.items()},
        "loss_above_qr": own["loss"] - peers["qr"]["loss"],
        "unseen_loss_above_qr": own["unseen"] - peers["qr"]["unseen"],
        "orthogonality_error": (found[0].rotation.T @ found[0].rotation - identity).abs().max().item(),
        "batch_tokens": case.batch_tokens,
        "ours": keys_of_ours,
        "start": case.losses(start_of(case)),
        "newton_schulz": own,
        "all_seconds": own_seconds,
        **peers,
    }


def start_of(case: Case) -> Tensor:
    """Where every training starts."""
    return random_hadamard(case.samples.shape[1], torch.Generator().manual_seed(0))


def training(case: Case, keys: dict[str, Any]) -> Training:
    """The training that recipe keys describe, with the case's batch."""
    return training_of(LearnedRotation.model_validate({"batch_tokens": case.batch_tokens} | keys), None)


def train(case: Case, keys: dict[str, Any]) -> Learned:
    """One whole run."""
    return learn(case.samples, start_of(case), training(case, keys), torch.Generator().manual_seed(1))


def timed(case: Case, keys: dict[str, Any], marks: dict[int, Callable[[int], None]]) -> tuple[float, Learned]:
    """The median seconds of a step, and the result; ``marks`` are called before their steps, on time of their own."""
    given = training(case, keys)
    starts: list[float] = []
    away: list[float] = []

    def watched(problem: RotationProblem, initial: Tensor, schedule: Schedule) -> Learned:
        def loss(rotation: Tensor, step: int) -> Tensor:
            begin = time.perf_counter()
            starts.append(begin)
            if step in marks:
                marks[step](step)
            away.append(time.perf_counter() - begin)
            return problem.loss(rotation, step)

        return given.optimizer(replace(problem, loss=loss), initial, schedule)

    learned = learn(case.samples, start_of(case), replace(given, optimizer=watched), torch.Generator().manual_seed(1))
    spans = [after - before - pause for before, after, pause in zip(starts, starts[1:], away, strict=False)]
    return statistics.median(spans), learned


def heavy_tailed(size: int) -> Case:
    """Normed tokens: an orthogonal mixture of sources of Student's t, 3 degrees of freedom, the k-th of scale 1/k."""
    generator = torch.Generator().manual_seed(size)
    tokens = TOKENS[size] + HELD
    normal = torch.randn(tokens, size, generator=generator)
    squares = sum(torch.randn(tokens, size, generator=generator).square() for _ in range(3))
    sources = normal / (squares / 3).sqrt().clamp_min(1e-2) / torch.arange(1, size + 1)
    x = sources @ torch.linalg.qr(torch.randn(size, size, generator=generator)).Q
    x = x * (math.sqrt(size) / torch.linalg.vector_norm(x, dim=-1, keepdim=True))
    return Case(f"hidden {size}", x[HELD:], x[:HELD], BATCH[size])


def embedded() -> Case:
    """What R1 of the embedded model is learned from; every eighth token is kept back."""
    recipe = recipe_of({}, 0)
    subject = open_subject(MODEL, None, Silent(), {"device": "cpu", "dtype": "float32"})
    windows = calibration_set(subject, recipe.calibration, Silent())
    training = ResidualTraining(ModelSizes.of(subject.stream), recipe)
    learner = ResidualLearner(residual_sampler(subject.stream, recipe, windows), training, subject.place.device)
    walk(subject.stream, True, windows, Workspace(subject.place), [learner], Silent())
    pool = training.samples.flatten(0, 1)
    kept_back = torch.arange(len(pool)) % 8 == 0
    return Case("embedded model", pool[~kept_back], pool[kept_back][:HELD], LearnedRotation().batch_tokens)


def recipe_of(keys: dict[str, Any], seed: int) -> Recipe:
    """``fast``, W4A4KV16, with R1 and R2 learned by Whip as ``keys`` say, on the demo's calibration text."""
    rotation = {"kind": "learned", "objective": "whip"} | keys
    given = {"source": CALIBRATION_TEXT, "num_samples": NUM_SAMPLES, "seqlen": SEQLEN, "seed": seed}
    given["rotation_samples"] = NUM_SAMPLES
    changes = [f"calibration.{key}={value}" for key, value in given.items()]
    changes += [f"rotations.{name}={json.dumps(rotation)}" for name in ("r1", "r2")]
    return jointquant.load_recipe("fast", changes)


def perplexities(name: str, keys: dict[str, Any], seeds: int) -> dict[str, Any]:
    """Of the reloaded W4A4KV16 artifacts of the embedded model, on the held-out text."""
    values = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(seeds):
            jointquant.quantize(MODEL, Path(folder) / "a", recipe_of(keys, seed), overwrite=True)
            result = jointquant.evaluate(Path(folder) / "a", (str(HELDOUT_TEXT),), seqlen=SEQLEN)
            values += result.perplexity.values()
    row = {"optimizer": name, "mean": statistics.mean(values), "min": min(values), "max": max(values), "seeds": seeds}
    print(json.dumps(row), flush=True)
    return row


if __name__ == "__main__":
    main()
