"""Messages name settings as Python does, and the command line shows flags."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

import jointquant
from commands import assert_refused
from jointquant.cli.flags import OTHERS, SETTINGS, as_flags
from jointquant.cli.main import application
from jointquant.models.options import ModelOptions


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("a new one, or `overwrite=True`", "a new one, or --overwrite"),
        ("a larger `memory_budget`", "a larger --memory-budget"),
        ("`seqlen=512` or `weights.method=rtn`", "--seqlen 512 or --set weights.method=rtn"),
        ('`recipe="w4a16"`, `device="cpu"`', "--recipe w4a16, --device cpu"),
        ('give `digests="ignore"`', "give --no-verify"),
        ("log in with `hf auth login`, see `jointquant recipes`", None),
        ("`calibration.rotation_samples` or `unknown=3`", None),
    ],
)
def test_settings_become_flags_and_other_words_stay(message: str, shown: str | None) -> None:
    assert as_flags(message) == (message if shown is None else shown)


def test_each_setting_is_one_of_the_api_and_has_its_flag() -> None:
    import typer

    verbs = typer.main.get_command(application()).commands.values()  # type: ignore[attr-defined]
    flags = {flag for verb in verbs for parameter in verb.params for flag in parameter.opts}
    calls = (
        jointquant.quantize,
        jointquant.compare,
        jointquant.evaluate,
        jointquant.export_artifact,
        jointquant.generate_text,
    )
    names = {name for call in calls for name in inspect.signature(call).parameters} | {*ModelOptions.__annotations__}
    assert {as_flags(f"`{name}`") for name in SETTINGS} | {*OTHERS.values()} <= flags
    assert {*SETTINGS} <= names


def test_python_names_settings_and_the_command_line_flags(save_model, tmp_path: Path, capsys) -> None:
    model, out = save_model("llama"), tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").touch()
    with pytest.raises(jointquant.InputError, match="expected a new one, or `overwrite=True`"):
        jointquant.quantize(model, out, "rtn")
    assert_refused(["quantize", str(model), "--out", str(out)], "or --overwrite", capsys, tmp_path)
