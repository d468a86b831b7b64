"""The verb generate."""

from __future__ import annotations

from pathlib import Path

from commands import assert_refused


def test_a_temperature_that_overflows(save_model, tmp_path: Path, capsys) -> None:
    arguments = ["generate", str(save_model("llama")), "--prompt", "a", "--temperature", "1e-310"]
    assert_refused(arguments, "expected 0, or a number from 1e-06 on", capsys, tmp_path)
