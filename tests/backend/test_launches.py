"""Programs that cannot be launched: the run goes on with the reference, one line says so, and the JSON too."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from commands import QUICK, run
from jointquant.backend import launches
from jointquant.quantization import gptq
from jointquant.runtime.kernels import int4_triton, selection
from jointquant.runtime.kernels.int4_triton import Int4Triton
from texts import TEXTS

pytest.importorskip("triton", reason="what cannot be launched are programs of Triton: pip install triton")

from triton.runtime.errors import OutOfResources


@pytest.fixture(autouse=True)
def a_gpu_with_little_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The CPU plays a GPU on which each launch fails."""

    def fail(*arguments: object) -> None:
        raise OutOfResources(300000, 101376, "shared memory")

    for module in (gptq, int4_triton):
        monkeypatch.setattr(module, "is_nvidia", lambda device: True)
    monkeypatch.setattr("jointquant.quantization.gptq_triton.round_columns", fail)
    monkeypatch.setattr(int4_triton, "_product", fail)
    monkeypatch.setitem(selection.ASKED, "auto", (Int4Triton(), selection.REFERENCE))
    launches.forget()
    yield
    launches.forget()


def said(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, object], list[str]]:
    """The JSON of a run that ends well, and its lines on failed launches."""
    launches.forget()
    with warnings.catch_warnings():
        warnings.simplefilter("always")  # Python itself says a line once a process
        assert run(*arguments, "--json", "--device", "cpu") == 0
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if "cannot run" in line]
    return json.loads(captured.out.strip().splitlines()[-1]), lines


def test_whole_runs_go_on(save_model, tmp_path: Path, capsys) -> None:
    model, artifact = str(save_model("llama")), str(tmp_path / "a")
    done, lines = said(["quantize", model, "--out", artifact, *QUICK, "--set", "weights.method=gptq"], capsys)
    assert lines == [
        "note: gptq_triton cannot run 16 columns of 96 rows here, the next kernel does: OutOfResources: out of "
        "resource: shared memory, Required: 300000, Hardware limit: 101376. Reducing block sizes or `num_stages` may "
        "help."
    ]
    assert [failed["program"] for failed in done["failed_launches"]] == ["gptq_triton"]  # type: ignore[index,attr-defined]

    prompt = ["generate", artifact, "--prompt", "Once", "--max-new-tokens", "3"]
    generated, lines = said(prompt, capsys)
    assert len(lines) == 1
    assert lines[0].startswith("note: int4_triton cannot run a weight [")
    assert {failed["program"] for failed in generated["failed_launches"]} == {"int4_triton"}  # type: ignore[index,attr-defined]

    evaluate = [
        "eval",
        artifact,
        "--text",
        str(TEXTS / "heldout.txt"),
        "--max-tokens",
        "64",
        "--seqlen",
        "32",
        "--kernels",
        "auto",
    ]
    measured, lines = said(evaluate, capsys)
    assert len(lines) == 1
    assert {failed["program"] for failed in measured["failed_launches"]} == {"int4_triton"}  # type: ignore[index,attr-defined]
    selection.ASKED["auto"] = (selection.REFERENCE,)
    by_reference, lines = said(evaluate, capsys)
    assert lines == []
    assert by_reference["perplexity"] == measured["perplexity"]
    assert said(prompt, capsys)[0]["text"] == generated["text"]
