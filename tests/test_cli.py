"""The command line: JSON, exit codes, one-line errors, and nothing written when the input is at fault."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import DEMO
from jointquant.cli import main

QUICK = ["--recipe", "rtn", "--calib", str(DEMO / "calibration.txt"), "--num-samples", "2", "--seqlen", "32"]


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return int(ended.value.code or 0)


def last_json(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    return dict(json.loads(capsys.readouterr().out.strip().splitlines()[-1]))


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


@pytest.mark.parametrize("verb", ["recipes", "models", "doctor"])
def test_lists(verb: str, capsys) -> None:
    assert run(verb, "--json") == 0
    assert last_json(capsys)
    assert run(verb) == 0


def test_a_recipe_in_full(capsys) -> None:
    assert run("recipes", "dartquant") == 0
    assert "objective: whip" in capsys.readouterr().out


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(folder: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


UP = "model.layers.1.mlp.up_proj.weight"


def put_nan(tensors: dict[str, torch.Tensor]) -> None:
    tensors[UP][3, 5] = torch.nan


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


BREAK: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "no config.json"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no weights"),
    "truncated shard": (cut, "not a whole safetensors file"),
    "missing tensor": (lambda f: edit_tensors(f, lambda t: t.pop(UP)), f"missing tensor {UP}"),
    "misshapen tensor": (lambda f: edit_tensors(f, lambda t: t.update({UP: torch.zeros(3, 3)})), "has shape [3, 3]"),
    "unexpected tensor": (
        lambda f: edit_tensors(f, lambda t: t.update(extra=torch.zeros(1))),
        "unexpected tensor extra",
    ),
    "NaN": (lambda f: edit_tensors(f, put_nan), f"{UP} holds NaN"),
    "unknown architecture": (lambda f: edit_config(f, model_type="gpt2"), "unknown architecture 'gpt2'"),
    "unknown model type": (lambda f: edit_config(f, model_type="zzz"), "zzz"),
    "broken config": (lambda f: (f / "config.json").write_text("{"), "config.json"),
    "no tokenizer": (lambda f: [p.unlink() for p in f.glob("tokenizer*")], "no tokenizer"),
    "broken index": (lambda f: (f / "model.safetensors.index.json").write_text("[]"), "not an index"),
    "index names a missing shard": (
        lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "b.safetensors"}}'),
        "b.safetensors",
    ),
    "already quantized": (lambda f: edit_config(f, quantization_config={"quant_method": "gptq"}), "already quantized"),
}

ARGUMENTS: dict[str, tuple[list[str], str]] = {
    "unknown recipe": (["--recipe", "nope"], "unknown recipe 'nope'"),
    "unknown key": (["--set", "weights.bits=4"], "unknown key 'weights.bits'"),
    "unknown value": (["--set", "weights.method=magic"], "weights.method"),
    "weight group": (["--set", "weights.group_size=7"], "group_size 7"),
    "activation group": (["--set", "activations.group_size=7"], "group_size 7"),
    "cache group": (["--set", "kv_cache.group_size=5"], "group_size 5"),
    "text too short": (["--num-samples", "100000"], "too short"),
    "no such text": (["--calib", "nowhere.txt"], "nowhere.txt"),
    "seqlen too long": (["--seqlen", "65"], "longer than the model's 64 positions"),
    "unknown device": (["--device", "abacus"], "unknown device 'abacus'"),
    "absent device": (["--device", "cuda:0"], "not available"),
    "unknown dtype": (["--dtype", "int4"], "unknown dtype 'int4'"),
    "not an integer": (["--seed", "one"], "--seed"),
    "unknown option": (["--colour", "red"], "--colour"),
}


def assert_refused(arguments: list[str], message: str, capsys, folder: Path) -> None:
    before = sorted(path for path in folder.rglob("*"))
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert "Traceback" not in captured.err
    assert sorted(path for path in folder.rglob("*")) == before


@pytest.mark.parametrize("name", BREAK)
def test_bad_models(name: str, save_model, tmp_path: Path, capsys) -> None:
    folder = save_model("llama")
    damage, message = BREAK[name]
    damage(folder)
    assert_refused(["quantize", str(folder), "--out", str(tmp_path / "o" / "out"), *QUICK], message, capsys, tmp_path)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_bad_arguments(name: str, save_model, tmp_path: Path, capsys) -> None:
    if name == "absent device" and torch.accelerator.is_available():
        pytest.skip("this machine has an accelerator")
    extra, message = ARGUMENTS[name]
    arguments = ["quantize", str(save_model("llama")), "--out", str(tmp_path / "o" / "out"), *QUICK, *extra]
    assert_refused(arguments, message, capsys, tmp_path)


def test_no_such_model(tmp_path: Path, capsys) -> None:
    arguments = ["quantize", str(tmp_path / "none"), "--out", str(tmp_path / "out"), *QUICK]
    assert_refused(arguments, "no such model", capsys, tmp_path)
    assert_refused(["eval", str(tmp_path / "none"), "--text", "x.txt"], "no such model", capsys, tmp_path)


def test_an_output_folder_that_is_not_empty(save_model, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    arguments = ["quantize", str(save_model("llama")), "--out", str(out), *QUICK]
    assert_refused(arguments, "not empty", capsys, tmp_path)
    assert (out / "mine.txt").read_text() == "keep"
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
