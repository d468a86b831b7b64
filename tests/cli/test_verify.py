"""The verb verify."""

from __future__ import annotations

from pathlib import Path

import pytest

from commands import QUICK, assert_refused, last_json, run
from conftest import DEMO
from jointquant.trust.folder import FINGERPRINT_NAME


def test_verdicts_and_exit_status(tmp_path: Path, capsys) -> None:
    out = str(tmp_path / "a")
    assert run("quantize", str(DEMO / "model"), "--out", out, *QUICK) == 0
    capsys.readouterr()
    assert run("verify", out, "--json") == 0
    assert last_json(capsys)["passed"] is True
    text = (tmp_path / "a" / FINGERPRINT_NAME).read_text()
    other = tmp_path / "other.json"
    other.write_text(text.replace('"chat": ""', '"chat": "x"'))
    assert run("verify", out, "--fingerprint", str(other), "--json") == 2
    assert last_json(capsys)["faults"] == ["chat_template_differs"]
    (tmp_path / "a" / FINGERPRINT_NAME).write_text(text.replace('"chat": ""', '"chat": "x"'))
    assert_refused(["verify", out], f"{FINGERPRINT_NAME} in", capsys, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none"], "no such artifact or export: none"),
        (["http://h", "--runtime", "vllm"], "expected no --runtime beside it"),
        (["http://h"], "`fingerprint`|--fingerprint"),
        ([".", "--runtime", "onnx"], "onnx"),
    ],
)
def test_what_is_refused(arguments: list[str], words: str, tmp_path: Path, capsys) -> None:
    assert_refused(["verify", *arguments], words, capsys, tmp_path)
