"""stats: the sites, spreads and traces that it writes."""

from __future__ import annotations

import json
from pathlib import Path

import jointquant
import jointquant.calibration.calibrate
from conftest import make_model, small

QUICK = ("rotations.r1.steps=4", "rotations.r2.steps=4")


def test_stats(tmp_path: Path, tokenizer) -> None:
    options = {"changes": [*small(), *QUICK], "tokenizer": tokenizer}
    result = jointquant.stats(make_model("llama"), tmp_path / "out", "dartquant", **options)  # type: ignore[arg-type]
    assert [row["site"] for row in result.sites][:4] == ["attn_in", "o_in", "mlp_in", "down_in"]
    stored = json.loads((tmp_path / "out" / "stats.json").read_text())
    assert stored == json.loads(json.dumps(result.to_dict()))
    assert len(stored["spreads"]) == 3 * 6
    assert set(stored["traces"]) == {"r1", "r2.0", "r2.1", "r2.2"}
    assert (tmp_path / "out" / "stats.html").is_file()
