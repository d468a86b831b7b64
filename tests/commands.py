"""Runs of the command line in this process, and what they leave behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

from jointquant.cli.main import main
from texts import TEXTS

QUICK = [
    *(
        "--recipe",
        "rtn",
        "--calib",
        str(TEXTS / "calibration.txt"),
        "--num-samples",
        "2",
        "--seqlen",
        "32",
        "--no-check",
    ),
]


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return int(ended.value.code or 0)


def last_json(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    return dict(json.loads(capsys.readouterr().out.strip().splitlines()[-1]))


def assert_refused(arguments: list[str], message: str, capsys, folder: Path) -> None:
    """One line, exit 2, and nothing new in ``folder``. The message may be one of several, separated by ``|``."""
    before = sorted(folder.rglob("*"))
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert any(words in lines[0] for words in message.split("|")), lines[0]
    assert lines[0].isprintable()
    assert "Traceback" not in captured.err + captured.out
    assert sorted(folder.rglob("*")) == before


def tensors_of(folder: Path) -> dict[str, Tensor]:
    """The tensors of an artifact's shards."""
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}
