"""The command line: JSON, exit codes, and what becomes of an output folder. Bad input: see hostile/."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from commands import QUICK, assert_refused, last_json, run
from conftest import DEMO
from jointquant import InputError, evaluate
from jointquant.cli.output import finish


def test_quantize_eval_generate(save_model, tmp_path: Path, capsys) -> None:
    out = tmp_path / "artifact"
    assert run("quantize", str(save_model("llama")), "--out", str(out), *QUICK, "--json") == 0
    result = last_json(capsys)
    assert result["artifact"] == str(out)
    assert {"seconds", "peak_rss_bytes", "size_bytes", "bits_per_weight", "transforms"} <= set(result)
    text = str(DEMO / "heldout.txt")
    assert run("eval", str(out), "--text", text, "--seqlen", "64", "--max-tokens", "640", "--json") == 0
    result = last_json(capsys)
    assert list(result["perplexity"]) == [text]  # type: ignore[call-overload]
    assert result["tokens"] == 640
    assert run("generate", str(out), "--prompt", "Return", "--max-new-tokens", "5", "--json") == 0
    assert last_json(capsys)["new_tokens"] == 5


def test_eval_beside_a_reference(save_model, tmp_path: Path, capsys) -> None:
    model, out = str(save_model("llama")), str(tmp_path / "artifact")
    assert run("quantize", model, "--out", out, *QUICK) == 0
    flags = ["--reference", model, "--text", str(DEMO / "heldout.txt"), "--seqlen", "64", "--max-tokens", "640"]
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
    given = [str(DEMO / "heldout.txt") if flag == "TEXT" else flag for flag in flags]
    model = str(save_model("llama"))
    assert_refused(["eval", model, *given], message, capsys, tmp_path)


def test_json_has_no_infinite_number(capsys) -> None:
    finish({"perplexity": {"t": math.inf}, "rows": [1.5, math.nan, None, True]}, as_json=True)
    assert json.loads(capsys.readouterr().out) == {"perplexity": {"t": None}, "rows": [1.5, None, None, True]}


def test_the_demo_replaces_nothing(tmp_path: Path, capsys) -> None:
    (tmp_path / "rtn-0").mkdir()
    assert_refused(["demo", "--out", str(tmp_path)], "is not empty", capsys, tmp_path)


def test_a_temperature_that_overflows(save_model, tmp_path: Path, capsys) -> None:
    arguments = ["generate", str(save_model("llama")), "--prompt", "a", "--temperature", "1e-310"]
    assert_refused(arguments, "expected 0, or a number from 1e-06 on", capsys, tmp_path)


def test_texts_are_several(save_model) -> None:
    with pytest.raises(InputError, match="texts is one string"):
        evaluate(save_model("llama"), "wikitext2")


@pytest.mark.parametrize("verb", ["recipes", "models", "doctor"])
def test_lists(verb: str, capsys) -> None:
    assert run(verb, "--json") == 0
    assert last_json(capsys)
    assert run(verb) == 0


def test_a_recipe_in_full(capsys) -> None:
    assert run("recipes", "dartquant") == 0
    assert "objective: whip" in capsys.readouterr().out


def test_an_output_folder_that_is_not_empty(save_model, tmp_path: Path, capsys) -> None:
    """An earlier output is replaced where that is asked for; what is anything else stays."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    arguments = ["quantize", str(save_model("llama")), "--out", str(out), *QUICK]
    for flags, message in (([], "is not empty"), (["--overwrite"], "holds no earlier output")):
        assert run(*arguments, *flags) == 2
        assert message in capsys.readouterr().err
        assert (out / "mine.txt").read_text() == "keep"
    (out / "mine.txt").unlink()
    assert run(*arguments) == 0
    (out / "mine.txt").write_text("gone with the artifact")
    assert run(*arguments) == 2
    assert run(*arguments, "--overwrite") == 0
    assert not (out / "mine.txt").exists()


def test_interruption_exits_130(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(DEMO / "model", folder)
    options = ["--calib", str(DEMO / "calibration.txt"), "--num-samples", "64", "--seqlen", "256"]
    command = [sys.executable, "-m", "jointquant", "quantize", str(folder), "--out", str(tmp_path / "out"), *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env=os.environ | {"PYTHONUNBUFFERED": "1"})
    deadline = time.monotonic() + 120
    while not (tmp_path / ".out.partial").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=120) == 130
    assert not (tmp_path / "out").exists()
