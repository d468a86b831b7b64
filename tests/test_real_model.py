"""A real trained Llama on real text: the published protocol's figures, in memory and from the saved artifact."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import jointquant

KV16 = "kv_cache.num_bits=16"


@pytest.fixture(scope="module")
def texts(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The first 150,000 characters to calibrate on, the rest to test on."""
    text = (shared / "data" / "tinystories-sample.txt").read_text()
    folder = tmp_path_factory.mktemp("texts")
    calibration, test = folder / "calibration.txt", folder / "test.txt"
    calibration.write_text(text[:150_000])
    test.write_text(text[150_000:])
    return str(calibration), str(test)


@dataclass
class Measured:
    """Artifacts of the model, each made and measured once."""

    model: Path
    texts: tuple[str, str]
    folder: Path
    known: dict[tuple[object, ...], tuple[Path, float]] = field(default_factory=dict)

    def of(self, recipe: str, *changes: str, seed: int) -> tuple[Path, float]:
        """An artifact, to be read only, and its perplexity."""
        key = (recipe, changes, seed)
        if key not in self.known:
            calibration, test = self.texts
            protocol = [f"calibration.source={calibration}", "calibration.num_samples=64", "calibration.seqlen=256"]
            settings = jointquant.load_recipe(recipe, [*protocol, f"calibration.seed={seed}", *changes])
            out = self.folder / str(len(self.known))
            jointquant.quantize(self.model, out, settings)
            self.known[key] = out, jointquant.evaluate(out, (test,), seqlen=256).perplexity[test]
        return self.known[key]


@pytest.fixture(scope="module")
def measured(shared: Path, texts: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Measured:
    return Measured(shared / "models" / "stories260k", texts, tmp_path_factory.mktemp("artifacts"))


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
def test_figures(recipe: str, changes: tuple[str, ...], bound: float, seed: int, measured: Measured) -> None:
    assert measured.of(recipe, *changes, seed=seed)[1] <= bound


def test_the_best_preset(measured: Measured) -> None:
    """One seed, some slack for other machines: docs/accuracy.md has the figures."""
    assert measured.of("w4a4kv4", seed=0)[1] <= 9.2


def test_the_same_figure_in_a_new_process(texts: tuple[str, str], measured: Measured) -> None:
    artifact, here = measured.of("dartquant", seed=0)
    command = [sys.executable, "-m", "jointquant", "eval", str(artifact), "--text", texts[1], "--seqlen", "256"]
    result = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True, timeout=300)
    there = json.loads(result.stdout.splitlines()[-1])["perplexity"][texts[1]]
    assert there == pytest.approx(here, abs=1e-3)
