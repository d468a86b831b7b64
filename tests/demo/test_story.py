"""The demo's table: each method is better than the one before it."""

from __future__ import annotations

from pathlib import Path

import pytest

from jointquant.demo import story
from jointquant.demo.story import HELDOUT_TEXT, RECIPES, run_demo
from jointquant.progress import Silent

PART = 72_000
"""Characters."""


def test_the_order_of_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With fewer seeds and less of the text than the demo has, which takes a third of its time."""
    monkeypatch.setattr(story, "RECIPES", RECIPES | {"gptq": 1, "quarot": 2, "dartquant": 2})
    part = tmp_path / "heldout.txt"
    part.write_text(HELDOUT_TEXT.read_text(encoding="utf-8")[:PART], encoding="utf-8")
    monkeypatch.setattr(story, "HELDOUT_TEXT", part)
    rows = {row.recipe: row for row in run_demo(tmp_path / "out", 0, Silent())}
    assert tuple(rows) == tuple(RECIPES)
    perplexity = {name: row.perplexity for name, row in rows.items()}
    assert perplexity["dartquant"] < perplexity["quarot"] < perplexity["gptq"] < perplexity["rtn"]
    assert perplexity["fp16"] < perplexity["dartquant"]
    assert perplexity["rtn"] > 1.05 * perplexity["fp16"]
    assert rows["rtn"].size_bytes < 0.5 * rows["fp16"].size_bytes
    assert (tmp_path / "out" / "dartquant-0" / "config.json").is_file()
