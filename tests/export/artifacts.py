"""Artifacts to export, made once each, and perplexities as other runtimes measure them."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import jointquant
from conftest import DEMO, few_steps, make_model, small
from jointquant.runtime.loading import load_tokenizer
from texts import TEXTS

HELDOUT = TEXTS / "heldout.txt"
SEQLEN, WINDOWS = 64, 16

# Name → preset and changes. All are small; those in DEMO_MODELS are of the embedded model.
RECIPES: dict[str, tuple[str, tuple[str, ...]]] = {
    "w4a16": ("w4a16", ("weights.group_size=32",)),
    "asymmetric": ("w4a16", ("weights.group_size=64", "weights.symmetric=false")),
    "w4a8": ("w4a16", ("weights.group_size=null", "activations.num_bits=8", "activations.symmetric=true")),
    "online": ("w4a16", ("weights.group_size=32", "rotations.r4.kind=hadamard")),
    "native only": ("quarot", ()),
    "gguf": ("gguf", ("rotations.r1.kind=hadamard", "rotations.r2.kind=hadamard")),
}


@dataclass
class Workshop:
    """Makes artifacts of the embedded model, and of tiny ones, as they are asked for."""

    folder: Path
    made: dict[str, Path] = field(default_factory=dict)

    def of_demo(self, name: str) -> Path:
        """The artifact of the embedded model by one of ``RECIPES``."""
        if name not in self.made:
            preset, changes = RECIPES[name]
            recipe = jointquant.load_recipe(preset, small(*few_steps(preset), *changes))
            jointquant.quantize(DEMO / "model", self.folder / name, recipe)
            self.made[name] = self.folder / name
        return self.made[name]

    def tiny(self, family: str, preset: str, *changes: str, **options: object) -> Path:
        """The artifact of a tiny random model of a family."""
        out = self.folder / f"{family} {len(self.made)}"
        recipe = jointquant.load_recipe(preset, small(*few_steps(preset), *changes))
        tokenizer = load_tokenizer(DEMO / "model")
        jointquant.quantize(make_model(family, **options), out, recipe, tokenizer=tokenizer)  # type: ignore[arg-type]
        self.made[out.name] = out
        return out


def our_perplexity(folder: Path) -> float:
    """As ``eval`` measures it, in float32."""
    result = jointquant.evaluate(folder, (str(HELDOUT),), seqlen=SEQLEN, max_tokens=SEQLEN * WINDOWS, dtype="float32")
    return result.perplexity[str(HELDOUT)]


# Loads folders with transformers where jointquant cannot be imported, and prints a perplexity or what was raised.
PLAIN = """
import json, math, sys
sys.modules["jointquant"] = None
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

def perplexity(folder, text, seqlen, windows):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor(tokenizer(text).input_ids[: seqlen * windows]).view(windows, seqlen)
    with torch.no_grad():
        losses = [model(input_ids=w[None], labels=w[None]).loss.item() for w in ids]
    return math.exp(sum(losses) / len(losses))

folders, path, seqlen, windows = json.load(sys.stdin)
text = open(path, encoding="utf-8").read()
found = {}
for folder in folders:
    try:
        found[folder] = perplexity(folder, text, seqlen, windows)
    except Exception as error:
        found[folder] = f"{type(error).__name__}: {error}"
json.dump(found, sys.stdout)
"""


def plain_perplexities(folders: list[Path]) -> dict[str, float | str]:
    """What transformers alone makes of some folders, by name: a perplexity, or the error."""
    process = subprocess.run(
        [sys.executable, "-I", "-c", PLAIN],
        input=json.dumps([[str(folder) for folder in folders], str(HELDOUT), SEQLEN, WINDOWS]),
        cwd=folders[0].parent,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    return {Path(folder).name: value for folder, value in json.loads(process.stdout).items()}
