"""The command line: JSON, exit codes, and what becomes of an output folder. Bad input: see hostile/."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from commands import QUICK, last_json, run
from conftest import DEMO


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
