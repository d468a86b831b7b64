"""The demo's table: each method is better than the one before it."""

from __future__ import annotations

from pathlib import Path

import pytest

from jointquant.demo import story
from jointquant.demo.story import RECIPES, run_demo
from jointquant.progress import Silent


def test_the_order_of_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With fewer seeds than the demo has, which takes half its time."""
    monkeypatch.setattr(story, "RECIPES", RECIPES | {"gptq": 1, "quarot": 2, "dartquant": 2})
    rows = {row.recipe: row for row in run_demo(tmp_path, 0, Silent())}
    assert tuple(rows) == tuple(RECIPES)
    perplexity = {name: row.perplexity for name, row in rows.items()}
    assert perplexity["dartquant"] < perplexity["quarot"] < perplexity["gptq"] < perplexity["rtn"]
    assert perplexity["fp16"] < perplexity["dartquant"]
    assert perplexity["rtn"] > 1.05 * perplexity["fp16"]
    assert rows["rtn"].size_bytes < 0.5 * rows["fp16"].size_bytes
    assert (tmp_path / "dartquant-0" / "config.json").is_file()
