"""The verb quantize, and what becomes of an output folder."""

from __future__ import annotations

from pathlib import Path

from commands import QUICK, run


def test_an_output_folder_that_is_not_empty(save_model, tmp_path: Path, capsys) -> None:
    """An earlier output is replaced where that is asked for; what is anything else stays."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    arguments = ["quantize", str(save_model("llama")), "--out", str(out), *QUICK]
    for flags, message in (([], "is not empty"), (["--overwrite"], "has no manifest of jointquant")):
        assert run(*arguments, *flags) == 2
        assert message in capsys.readouterr().err
        assert (out / "mine.txt").read_text() == "keep"
    (out / "mine.txt").unlink()
    assert run(*arguments) == 0
    (out / "mine.txt").write_text("kept")
    assert run(*arguments) == 2
    assert run(*arguments, "--overwrite") == 2
    assert "holds mine.txt besides" in capsys.readouterr().err
    (out / "mine.txt").unlink()
    assert run(*arguments, "--overwrite") == 0
