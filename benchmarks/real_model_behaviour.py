"""Beyond perplexity: what a user of a quantized SmolLM2-135M-Instruct notices. Artifacts of ``real_model.py``.

    python benchmarks/real_model_behaviour.py --keep FOLDER --test wikitext2-test.txt --items c4.txt [--rows NAME ...]

FOLDER is that of ``python benchmarks/real_model.py presets --keep FOLDER``. Of each artifact, and of the unquantized
model, it is measured

- how the divergence grows or shrinks with a token's position, on 2 windows of 2,048 tokens of the test text;
- what it answers to 8 questions in the chat template, and how it goes on with one text, 256 tokens at most, always by
  the likeliest token: how often it ends in a loop, how long it is, where it leaves the unquantized model's answer;
- how often it finds the last word of two sentences of C4, of all words and of four (``benchmarks/word_tasks.py``).

Writes benchmarks/results/real_model_behaviour.json after every part of a row; what is there already is kept.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from collections.abc import Callable
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import torch
from chat_text import QUESTIONS, as_asked, continued
from kept_logits import KeptLogits, write_logits
from smollm2 import CACHE, PACKAGE, fetch
from torch import Tensor
from word_tasks import write_tasks

import jointquant
from jointquant.evaluation.divergence import token_divergences
from jointquant.runtime.loading import load, load_tokenizer
from jointquant.text.loops import loops
from jointquant.text.sources import load_text
from jointquant.text.tokens import tokenize
from jointquant.text.windows import evaluation_windows
from report import machine

RESULT = Path(__file__).parent / "results" / "real_model_behaviour.json"
UNQUANTIZED = "unquantized"
ROWS = (
    UNQUANTIZED,
    "W4A4KV4 dartquant",
    "W4A4KV4 w4a4kv4, relative, 128 windows",
    "W4A8KV8 w4a8kv8",
)
LONG, WINDOWS = 2048, 2
BORDERS = (0, 1, 16, 64, 256, 512, 1024, LONG - 1)
"""Positions between which divergences are averaged."""

ASKED, BEGUN, NEW_TOKENS = QUESTIONS[:8], "The Roman Empire was", 256


def main() -> None:
    """Measure the parts of all rows, one part after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--items", type=Path, required=True, help="the text that the items are made of")
    parser.add_argument("--rows", nargs="+", choices=ROWS, metavar="NAME", help="only these")
    parser.add_argument("--cache", type=Path, default=CACHE)
    arguments = parser.parse_args()
    model = fetch(arguments.cache)
    result = json.loads(RESULT.read_text()) if RESULT.is_file() else {"rows": {}}
    facts = {"command": "python benchmarks/real_model_behaviour.py …", "model": PACKAGE}
    result |= {**facts, "new_tokens": NEW_TOKENS, "borders": BORDERS}
    rows: dict[str, dict[str, Any]] = result["rows"]
    with tempfile.TemporaryDirectory() as folder:
        measures = parts_of(model, arguments.items, arguments.test, Path(folder))
        for part, row in product(measures, arguments.rows or ROWS):
            if part not in rows.setdefault(row, {}) and (part, row) != ("kl_by_position", UNQUANTIZED):
                subject = model if row == UNQUANTIZED else arguments.keep / re.sub(r"\W+", "-", row)
                rows[row] |= {part: measures[part](subject), **machine()}
                print(part, row, rows[row][part], flush=True)
                RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def parts_of(model: Path, items: Path, test: Path, place: Path) -> dict[str, Callable[[Path], Any]]:
    """What is measured of a model or an artifact, by its name in the result."""
    tokenizer = load_tokenizer(model)
    reference = place / "reference.npy"
    tokens = tokenize(tokenizer, load_text(str(test), "evaluation", None, tokenizer))
    windows = evaluation_windows(tokens[: LONG * WINDOWS], LONG, test.name)
    tasks = write_tasks(items, tokenizer, place / "tasks")

    def divergences(subject: Path) -> list[float]:
        if not reference.is_file():
            write_logits(load(model, dtype="float32"), windows, reference)
        return by_position(subject, windows, reference)

    def scores(subject: Path) -> dict[str, dict[str, float]]:
        return jointquant.evaluate(subject, tasks=tasks, seqlen=256).tasks

    return {"answers": answers, "tasks": scores, "kl_by_position": divergences}


@torch.no_grad()
def by_position(artifact: Path, windows: Tensor, reference: Path) -> list[float]:
    """The mean divergence between each border and the next."""
    model, kept = load(artifact, kernels="reference"), KeptLogits(reference)
    found = []
    for row in windows.split(1):
        p, q = (logits[0, :-1].float() for logits in (kept(row), model(row, use_cache=False).logits))
        found.append(token_divergences(p, q).double())
    each = torch.stack(found)
    return [each[:, start:end].mean().item() for start, end in pairwise(BORDERS)]


def answers(subject: Path) -> list[dict[str, Any]]:
    """What a model says to each question, and how it goes on with the text."""
    model, tokenizer = load(subject, kernels="reference"), load_tokenizer(subject)
    asked = [*(as_asked(tokenizer, question) for question in ASKED), BEGUN]
    made = continued(model, tokenizer, asked, NEW_TOKENS, do_sample=False)
    return [
        {
            "prompt": prompt,
            "text": tokenizer.decode(ids),
            "tokens": len(ids),
            "ended": len(ids) < NEW_TOKENS,
            "loops": loops(ids.tolist()),
        }
        for prompt, ids in zip((*ASKED, BEGUN), made, strict=True)
    ]


if __name__ == "__main__":
    main()
