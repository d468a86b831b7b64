"""Two tasks for ``jointquant eval --tasks``, made of a text: which word comes last?

    python benchmarks/word_tasks.py TEXT.txt MODEL OUT

An item is two sentences of a text without their last word, which is one token for MODEL. ``last_word`` asks whether the
model's own first choice is that word; ``one_of_four`` whether it prefers it to the last words of the three items that
follow (chance: 25%). Neither needs anything to be downloaded. OUT gets last_word.yaml, one_of_four.yaml, and the items.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

ITEMS, SHORTEST, LONGEST = 300, 20, 45
"""How many, and how many words both sentences have together."""

PLAIN = re.compile(r"[A-Z][a-z']*(?:,? [A-Za-z'-]+)+")
"""A sentence without its full stop, of words and commas alone."""

TASKS = {
    "last_word": """task: last_word
dataset_path: json
dataset_kwargs: {data_files: ITEMS}
test_split: train
output_type: loglikelihood
doc_to_text: "{{context}}"
doc_to_target: " {{word}}"
metric_list:
- {metric: acc, aggregation: mean, higher_is_better: true}
""",
    "one_of_four": """task: one_of_four
dataset_path: json
dataset_kwargs: {data_files: ITEMS}
test_split: train
output_type: multiple_choice
doc_to_text: "{{context}}"
doc_to_choice: "{{choices}}"
doc_to_target: 0
metric_list:
- {metric: acc, aggregation: mean, higher_is_better: true}
""",
}


def main() -> None:
    """Write the tasks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    write_tasks(arguments.text, AutoTokenizer.from_pretrained(arguments.model), arguments.out)


def write_tasks(text: Path, tokenizer: Any, out: Path) -> tuple[str, ...]:
    """Make both tasks of a text; their files."""
    out.mkdir(parents=True, exist_ok=True)
    items = out / "items.jsonl"
    found = with_choices(list(passages(text.read_text(encoding="utf-8"), tokenizer)))
    items.write_text("".join(json.dumps(item) + "\n" for item in found), encoding="utf-8")
    for name, task in TASKS.items():
        (out / f"{name}.yaml").write_text(task.replace("ITEMS", str(items.resolve())), encoding="utf-8")
    return tuple(str(out / f"{name}.yaml") for name in TASKS)


def passages(text: str, tokenizer: Any) -> Iterator[dict[str, str]]:
    """Two sentences that follow each other, and the last word of the second; no word twice."""
    words: set[str] = set()
    sentences = re.split(r"\. |\n", text)
    for first, second in pairwise(sentences):
        context, _, word = f"{first}. {second}".rpartition(" ")
        suits = PLAIN.fullmatch(first) and PLAIN.fullmatch(second) and SHORTEST <= len(context.split()) < LONGEST
        if not suits or word in words or not re.fullmatch("[a-z]{4,}", word):
            continue
        if len(tokenizer(f" {word}", add_special_tokens=False).input_ids) == 1:
            words.add(word)
            yield {"context": context, "word": word}
        if len(words) == ITEMS:
            return


def with_choices(items: list[dict[str, str]]) -> list[dict[str, Any]]:
    """Each item with four words, its own first."""
    around = [*items, *items[:3]]
    return [item | {"choices": [around[place + step]["word"] for step in range(4)]} for place, item in enumerate(items)]


if __name__ == "__main__":
    main()
