"""The verb eval."""

from __future__ import annotations

from pathlib import Path

import pytest

from commands import QUICK, assert_refused, last_json, run
from texts import TEXTS


def test_eval_beside_a_reference(save_model, tmp_path: Path, capsys) -> None:
    model, out = str(save_model("llama")), str(tmp_path / "artifact")
    assert run("quantize", model, "--out", out, *QUICK) == 0
    flags = ["--reference", model, "--text", str(TEXTS / "heldout.txt"), "--seqlen", "64", "--max-tokens", "640"]
    capsys.readouterr()
    assert run("eval", out, *flags, "--json") == 0
    (found,) = last_json(capsys)["divergence"].values()  # type: ignore[attr-defined]
    assert found["mean"] > 0
    assert set(found) == {"mean", "stderr", "median", "p99", "maximum", "same_top"}
    assert run("eval", out, *flags) == 0
    shown = capsys.readouterr().out
    assert "KL divergence" in shown
    assert f"{found['same_top']:.2%}" in shown


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--card", "--text", "TEXT"], "is no artifact and no export of one"),
        (["--card", "--text", "TEXT", "--max-tokens", "640"], "expected no --max-tokens"),
        (["--card", "--tasks", "anything"], "expected some --text"),
        (["--text", "TEXT", "--seqlen", "0"], "seqlen must be at least 2, got 0"),
    ],
)
def test_eval_refuses_before_it_measures(flags: list[str], message: str, save_model, tmp_path: Path, capsys) -> None:
    given = [str(TEXTS / "heldout.txt") if flag == "TEXT" else flag for flag in flags]
    model = str(save_model("llama"))
    assert_refused(["eval", model, *given], message, capsys, tmp_path)
