"""Digests of the artifacts of every preset on many models: a change of structure must not change a byte.

    python benchmarks/digests.py --out before.json              # at the commit before
    python benchmarks/digests.py --out after.json --against before.json

Models: the embedded one, stories260k where it lies beside the checkout, and a tiny random one of every family. A preset
that a model refuses is noted with its words, and tried again with weights per channel. Results depend on the number of
threads and on the versions of torch and transformers: make both files on one machine.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import jointquant
from conftest import DEMO, FAMILIES, SHARED, make_model, possible
from jointquant.errors import InputError
from jointquant.runtime.loading import load_tokenizer

PRESETS = [
    "rtn",
    "gptq",
    "quarot",
    "dartquant",
    "jointquant",
    "joint-range",
    "fast",
    "w4a16",
    "w4a8kv8",
    "w4a4kv16",
    "w4a4kv4",
]
PER_CHANNEL = "weights.group_size=null"


def main() -> None:
    """Quantize all, print a line each, write the file, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--models", default="", help="only those whose names contain this")
    arguments = parser.parse_args()
    found: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, model, changes in models(Path(folder)):
            for preset in PRESETS if arguments.models in name else ():
                found |= {f"{name} {preset}": outcome(model, preset, changes)}
                print(name, preset, found[f"{name} {preset}"], flush=True)
                arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if arguments.against is not None:
        compare(found, json.loads(arguments.against.read_text(encoding="utf-8")))


def models(folder: Path) -> Iterator[tuple[str, Path, list[str]]]:
    """Name, folder and calibration of each model."""
    text = f"calibration.source={DEMO / 'calibration.txt'}"
    small = [text, "calibration.num_samples=8", "calibration.seqlen=64"]
    yield "embedded", DEMO / "model", small
    if SHARED.is_dir():
        stories = f"calibration.source={SHARED / 'data' / 'tinystories-sample.txt'}"
        yield "stories260k", SHARED / "models" / "stories260k", [stories, *small[1:]]
    tokenizer = load_tokenizer(DEMO / "model")
    for family in FAMILIES:
        make_model(family).save_pretrained(folder / family)
        tokenizer.save_pretrained(folder / family)
        tiny = [text, "calibration.num_samples=4", "calibration.seqlen=32"]
        yield family, folder / family, possible(family, *tiny)


def outcome(model: Path, preset: str, changes: list[str]) -> str:
    """The artifact's digest, or the refusal's words and the digest with weights per channel."""
    try:
        return digest(model, preset, changes)
    except InputError as error:
        refusal = str(error).replace(str(model.parent), "")
    try:
        return f"{digest(model, preset, [*changes, PER_CHANNEL])} with {PER_CHANNEL}, else: {refusal}"
    except InputError as error:
        return f"refused: {error}".replace(str(model.parent), "")


def digest(model: Path, preset: str, changes: list[str]) -> str:
    """SHA-256 over names and bytes of all files of an artifact, wherever this checkout and its texts lie."""
    places = [str(place).encode() for place in (DEMO, SHARED)]
    with tempfile.TemporaryDirectory() as folder:
        jointquant.quantize(model, Path(folder) / "a", jointquant.load_recipe(preset, changes))
        total = hashlib.sha256()
        for path in sorted((Path(folder) / "a").rglob("*")):
            if path.is_file():
                data = path.read_bytes()
                for place in places:
                    data = data.replace(place, b"here")
                total.update(path.name.encode() + b"\0" + data)
        return total.hexdigest()[:32]


def compare(found: dict[str, str], before: dict[str, str]) -> None:
    """Say what differs, and end with status 1 then."""
    differing = [name for name in found if found[name] != before.get(name)]
    for name in differing:
        print(f"differs: {name}\n  before {before.get(name)}\n  after  {found[name]}")
    about = f"torch {torch.__version__}, {torch.get_num_threads()} threads"
    print(f"{len(found) - len(differing)} of {len(found)} equal, {about}")
    if differing:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
