"""The command line's ``tune``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from commands import run
from conftest import small
from jointquant import quantize
from jointquant.cli.tune import rates_of
from jointquant.errors import InputError
from jointquant.tuning.settings import RATES


def test_before_and_after_are_shown_and_given(
    save_model: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = save_model("llama"), tmp_path / "t"
    quantize(model, tmp_path / "a", "rtn", changes=small())
    given = [
        "--reference",
        str(model),
        "--out",
        str(out),
        "--epochs",
        "8",
        "--batch-tokens",
        "32",
        "--rate",
        "scales=0.003",
    ]
    assert run("tune", str(tmp_path / "a"), *given, "--json") == 0
    captured = capsys.readouterr()
    for words in ("on held-out windows", "before", "after"):
        assert words in captured.err
    found = json.loads(captured.out.splitlines()[-1])
    assert found["after"]["mean"] < found["before"]["mean"]
    assert len(found["losses"]) == 32
    fact = json.loads((out / "config.json").read_text())["quantization_config"]["tuned"][0]
    assert fact["rates"] == RATES | {"scales": 0.003}


def test_rates_are_those_that_are_given_else_the_usual_ones() -> None:
    assert rates_of([]) == RATES
    assert rates_of(["scales=0.01", "means=0"]) == {"scales": 0.01, "biases": RATES["biases"], "clips": RATES["clips"]}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("scales", "expected PART=RATE"),
        ("codes=0.1", "unknown part 'codes', expected one of scales, biases, means, clips"),
        ("scales=fast", "expected a number"),
    ],
)
def test_what_is_no_rate_is_refused(given: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        rates_of([given])
