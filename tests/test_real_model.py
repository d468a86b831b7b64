"""A real trained Llama on real text: the published protocol's figures, in memory and from the saved artifact."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import jointquant

KV16 = "kv_cache.num_bits=16"


@pytest.fixture
def texts(shared: Path, tmp_path: Path) -> tuple[str, str]:
    """The first 150,000 characters to calibrate on, the rest to test on."""
    text = (shared / "data" / "tinystories-sample.txt").read_text()
    calibration, test = tmp_path / "calibration.txt", tmp_path / "test.txt"
    calibration.write_text(text[:150_000])
    test.write_text(text[150_000:])
    return str(calibration), str(test)


def measure(shared: Path, texts: tuple[str, str], out: Path, recipe: str, *changes: str, seed: int) -> float:
    calibration, test = texts
    protocol = [f"calibration.source={calibration}", "calibration.num_samples=64", "calibration.seqlen=256"]
    settings = jointquant.load_recipe(recipe, [*protocol, f"calibration.seed={seed}", *changes])
    jointquant.quantize(shared / "models" / "stories260k", out, settings, overwrite=True)
    return jointquant.evaluate(out, (test,), seqlen=256).perplexity[test]


def test_the_reference(shared: Path, texts: tuple[str, str]) -> None:
    result = jointquant.evaluate(shared / "models" / "stories260k", (texts[1],), seqlen=256)
    assert result.perplexity[texts[1]] == pytest.approx(7.737, abs=0.001)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("recipe", "changes", "bound"),
    [
        ("gptq", (KV16,), 11.6),
        ("quarot", (KV16,), 10.1),
        ("dartquant", (KV16,), 9.9),
        ("dartquant", (), 16.2),
    ],
)
def test_figures(recipe: str, changes: tuple[str, ...], bound: float, seed: int, shared, texts, tmp_path) -> None:
    assert measure(shared, texts, tmp_path / "a", recipe, *changes, seed=seed) <= bound


def test_the_best_preset(shared: Path, texts: tuple[str, str], tmp_path: Path) -> None:
    """One seed, some slack for other machines: docs/accuracy.md has the figures."""
    assert measure(shared, texts, tmp_path / "a", "w4a4kv4", seed=0) <= 9.2


def test_the_same_figure_in_a_new_process(shared: Path, texts: tuple[str, str], tmp_path: Path) -> None:
    here = measure(shared, texts, tmp_path / "a", "dartquant", seed=0)
    command = [sys.executable, "-m", "jointquant", "eval", str(tmp_path / "a"), "--text", texts[1], "--seqlen", "256"]
    result = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True, timeout=300)
    there = json.loads(result.stdout.splitlines()[-1])["perplexity"][texts[1]]
    assert there == pytest.approx(here, abs=1e-3)
