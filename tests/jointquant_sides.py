"""The preset ``jointquant`` and JointQuant written out by hand, on the embedded model from the same inputs.

Both get the model in float32: what is rounded to bfloat16 besides, because a checkpoint is stored so, is no part of the
method. Nor is what last digits decide, which is more than it seems: a difference of 1e-6 in R1 turns a few roundings of
inputs, and these turn others, which shows in perplexities of few tokens; and where the largest weight of a group lies
at 7.5 steps, between two integers, they decide which one it becomes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import jointquant
import jointquant.demo
from jointquant.rotations.bundle import ROTATIONS_NAME, Rotations
from jointquant.rotations.hadamard import random_hadamard
from jointquant.seeds import generator, rounds
from jointquant.text.windows import calibration_windows
from jointquant_by_hand import Found, Inputs, jointquant_by_hand

DEMO = Path(jointquant.demo.__file__).parent
CALIBRATION, HELD_OUT = (DEMO / name for name in ("calibration.txt", "heldout.txt"))
LENGTH, AT_ONCE = 128, 8
LARGEST = {"compressed-tensors": 7.5, "quarot": 7.0, "jointquant": 8.0}
"""By ``weights.symmetric_scale``, the steps from 0 to the largest weight of a group."""


def in_float32(folder: Path) -> Path:
    """The embedded model with its numbers in float32, written to a folder."""
    AutoModelForCausalLM.from_pretrained(DEMO / "model", dtype=torch.float32).save_pretrained(folder)
    AutoTokenizer.from_pretrained(DEMO / "model").save_pretrained(folder)
    return folder


def windows_of(path: Path) -> Tensor:
    """All windows of a text: [windows, LENGTH]."""
    tokenizer = AutoTokenizer.from_pretrained(DEMO / "model")
    ids = tokenizer(path.read_text(encoding="utf-8"), return_tensors="pt", verbose=False).input_ids[0]
    return ids[: len(ids) // LENGTH * LENGTH].view(-1, LENGTH)


@dataclass(frozen=True)
class Case:
    """What both sides are given.

    Attributes:
        model: a folder.
        seed: of the windows, the start of R1, and the order of tokens.
        windows: to calibrate on.
        batch: tokens of each layer that a step sees.
        evaluated: tokens that the perplexity is of.
        grid: of the weights, a key of ``LARGEST``.
    """

    model: Path
    seed: int
    windows: int
    batch: int
    evaluated: int
    grid: str

    def by_hand(self) -> Found:
        """The method written out."""
        hidden = int(AutoConfig.from_pretrained(self.model).hidden_size)
        drawn = calibration_windows(windows_of(CALIBRATION).flatten(), self.windows, LENGTH, self.seed, "")
        start = random_hadamard(hidden, generator(self.seed, "r1"))
        order = rounds(2 * self.windows * LENGTH, self.batch, generator(self.seed, "r1 batches"))
        inputs = Inputs(self.model, drawn, AT_ONCE, start, order, LARGEST[self.grid])
        return jointquant_by_hand(inputs, windows_of(HELD_OUT)[: self.evaluated // LENGTH])

    def by_preset(self, out: Path) -> Found:
        """What ``quantize`` writes to ``out`` with the preset, and what ``evaluate`` says of it."""
        changes = {
            "weights.group_tail": "pad",
            "weights.scale_dtype": "float32",
            "weights.symmetric_scale": self.grid,
            "rotations.r1.batch_tokens": self.batch * AutoConfig.from_pretrained(self.model).num_hidden_layers,
            "calibration.seed": self.seed,
            "calibration.source": CALIBRATION,
            "calibration.num_samples": self.windows,
            "calibration.seqlen": LENGTH,
        }
        changed = [f"{key}={value}" for key, value in changes.items()]
        jointquant.quantize(self.model, out, "jointquant", changes=changed)
        learned = Rotations.load(out / ROTATIONS_NAME)
        (rotation,) = learned.r1
        found = jointquant.evaluate(out, (str(HELD_OUT),), seqlen=LENGTH, max_tokens=self.evaluated)
        return Found(list(learned.traces["r1"].losses), rotation, found.perplexity[str(HELD_OUT)])
