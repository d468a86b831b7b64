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
from texts import TEXTS

QUICKLY = (
    "--help",
    "--version",
    "",
    "recipes",
    "recipes dartquant",
    "models",
    "quantize --help",
    "kwantize",
    "quantize --nothing",
    "quantize model --out out --recipe w4a4",
    "quantize model --out out --set weights.group_sise=32",
)
"""Commands that need neither torch nor transformers, which take seconds to import."""

LOADED = """
import sys
from jointquant.cli.main import main
for command in sys.argv[1:]:
    try:
        main(command.split())
    except SystemExit:
        heavy = {"torch", "transformers", "numpy"} & set(sys.modules)
        assert not heavy, f"{command} imports {heavy}"
    else:
        raise AssertionError(f"{command} does not exit")
"""


def test_what_needs_no_model_imports_neither_torch_nor_transformers() -> None:
    done = subprocess.run([sys.executable, "-c", LOADED, *QUICKLY], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for said in ("jointquant 0", "dartquant", "qwen3_moe"):
        assert said in done.stdout


WITHOUT_MEMORY = """
import atexit, sys
from jointquant.cli import main
atexit.register(print, "what a library does at the end", file=sys.stderr)
def run(arguments):
    raise MemoryError
main.run, sys.argv = run, ["jointquant", "doctor"]
main.main()
"""


def test_without_memory_nothing_else_is_tried_at_the_end() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_MEMORY], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: memory ran out: raise the limit of this process, or lower --memory-budget"
    ]


def test_quantize_eval_generate(save_model, tmp_path: Path, capsys) -> None:
    out = tmp_path / "artifact"
    assert run("quantize", str(save_model("llama")), "--out", str(out), *QUICK, "--json") == 0
    result = last_json(capsys)
    assert result["artifact"] == str(out)
    assert {"seconds", "peak_rss_bytes", "size_bytes", "bits_per_weight", "transforms"} <= set(result)
    text = str(TEXTS / "heldout.txt")
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
