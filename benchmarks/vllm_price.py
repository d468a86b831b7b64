"""What it costs to compute 4 bits as vLLM does: symmetric inputs, nothing centred, its own cache.

    python benchmarks/vllm_price.py MODEL [--stories260k FOLDER --text tinystories.txt] [--wikitext FOLDER]

MODEL is ``embedded``, ``stories260k`` or ``smollm2``. Each row is the preset ``vllm-w4a4kv4`` with something changed,
measured from its artifact beside the unquantized model: stories260k by the protocol of ``stories260k.py``, SmolLM2 by
that of ``real_model.py`` with 32 windows. The perplexities are ours; the tests hold our arithmetic against vLLM's in
plain torch. Writes benchmarks/results/vllm_price.json; rows of other models are kept.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smollm2 import fetch

import jointquant
from report import machine

RESULT = Path(__file__).parent / "results" / "vllm_price.json"
DEMO = Path(jointquant.__file__).parent / "demo"
PRESET = "vllm-w4a4kv4"
ASYMMETRIC = ("activations.symmetric=false", "activations.symmetric_range=full")
CENTRED = ("activations.centring=mean",)
OWN_CACHE = ("kv_cache={num_bits: 4, centring: both}", "rotations.r3.kind=hadamard")
ROWS: dict[str, tuple[str, tuple[str, ...]]] = {
    "as vLLM computes it": (PRESET, ()),
    "asymmetric inputs": (PRESET, ASYMMETRIC),
    "asymmetric and centred inputs": (PRESET, ASYMMETRIC + CENTRED),
    "our cache, centred": (PRESET, OWN_CACHE),
    "all of these": (PRESET, ASYMMETRIC + CENTRED + OWN_CACHE),
    "`w4a4kv4`: also learned R3 and R4, balanced keys, clipped inputs": ("w4a4kv4", ()),
}
CALIBRATION_CHARACTERS = 150_000
"""Of the TinyStories sample; the rest tests."""


@dataclass(frozen=True)
class Protocol:
    """A model, its two texts, and how much of them is read."""

    model: Path
    calibration: Path
    test: Path
    windows: int
    seqlen: int
    max_tokens: int | None = None


def protocol_of(arguments: argparse.Namespace, scratch: Path) -> Protocol:
    """The protocol of the model that was named."""
    if arguments.model == "embedded":
        return Protocol(DEMO / "model", DEMO / "calibration.txt", DEMO / "heldout.txt", 32, 128)
    if arguments.model == "smollm2":
        texts = [arguments.wikitext / f"wikitext2-{part}.txt" for part in ("valid", "test")]
        return Protocol(fetch(), *texts, 32, 256, 8192)
    text = arguments.text.read_text(encoding="utf-8")
    calibration, test = scratch / "calibration.txt", scratch / "test.txt"
    calibration.write_text(text[:CALIBRATION_CHARACTERS], encoding="utf-8")
    test.write_text(text[CALIBRATION_CHARACTERS:], encoding="utf-8")
    return Protocol(arguments.stories260k, calibration, test, 64, 256)


def measured(protocol: Protocol, name: str, common: list[str], out: Path) -> dict[str, Any]:
    """One row; ``common`` are changes that all rows have."""
    preset, changes = ROWS[name]
    read = (f"calibration.source={protocol.calibration}", f"calibration.num_samples={protocol.windows}")
    recipe = jointquant.load_recipe(preset, [*read, f"calibration.seqlen={protocol.seqlen}", *changes, *common])
    made = jointquant.quantize(protocol.model, out, recipe, overwrite=True)
    text = str(protocol.test)
    options = {"seqlen": protocol.seqlen, "max_tokens": protocol.max_tokens}
    found = jointquant.evaluate(out, (text,), reference=protocol.model, **options)
    divergence = found.divergence[text]
    return {
        "what": name,
        "recipe": preset,
        "changes": list(changes),
        "common": common,
        "windows": protocol.windows,
        "seqlen": protocol.seqlen,
        "perplexity": found.perplexity[text],
        "kl": divergence.mean,
        "kl_stderr": divergence.stderr,
        "top1": divergence.same_top,
        "tier": made.tier,
        "seconds": made.seconds,
    }


def main() -> None:
    """Measure the rows of one model, and write each as it comes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=("embedded", "stories260k", "smollm2"))
    parser.add_argument("--stories260k", type=Path)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--wikitext", type=Path, help="a folder with wikitext2-valid.txt and wikitext2-test.txt")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="changes of all rows' recipes")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        protocol = protocol_of(arguments, Path(folder))
        text = str(protocol.test)
        options = {"seqlen": protocol.seqlen, "max_tokens": protocol.max_tokens}
        plain = jointquant.evaluate(protocol.model, (text,), **options).perplexity[text]
        for name in arguments.rows:
            row = measured(protocol, name, arguments.set, Path(folder) / "artifact")
            print(json.dumps(row), flush=True)
            _add({"model": arguments.model, "unquantized": plain, **row, **machine()})


def _add(row: dict[str, Any]) -> None:
    """Put a row into the result file, in the place of the one that it had."""
    rows = json.loads(RESULT.read_text(encoding="utf-8"))["rows"] if RESULT.is_file() else []
    rows = [old for old in rows if (old["model"], old["what"]) != (row["model"], row["what"])]
    content = {"command": "python benchmarks/vllm_price.py MODEL …", "rows": [*rows, row]}
    RESULT.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
