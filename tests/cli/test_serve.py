"""The verb serve."""

from __future__ import annotations

from pathlib import Path

import pytest

from commands import assert_refused, run


def test_the_command_is_printed(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: f"/bin/{name}")
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    assert run("serve", str(tmp_path / "a.gguf"), "--print", "--port", "9000") == 0
    assert capsys.readouterr().out == f"/bin/llama-server --model {tmp_path}/a.gguf --host 127.0.0.1 --port 9000\n"


def test_nothing_to_serve(tmp_path: Path, capsys) -> None:
    assert_refused(["serve", str(tmp_path / "none")], "no such artifact or export", capsys, tmp_path)
