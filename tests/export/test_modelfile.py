"""The Modelfile that Ollama reads beside a GGUF file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from export.artifacts import Workshop
from jointquant import InputError, export_artifact
from jointquant.export.formats import modelfile_path, users
from jointquant.export.modelfile import parameters, stops
from jointquant.runtime.loading import load_tokenizer


@pytest.mark.parametrize(
    ("settings", "lines"),
    [
        ({}, []),
        ({"do_sample": False, "temperature": 0.7}, ["PARAMETER temperature 0"]),
        (
            {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.05},
            [
                "PARAMETER temperature 0.6",
                "PARAMETER top_k 20",
                "PARAMETER top_p 0.95",
                "PARAMETER repeat_penalty 1.05",
            ],
        ),
        ({"temperature": None, "max_length": 20}, []),
    ],
)
def test_how_tokens_are_drawn(settings: dict[str, object], lines: list[str]) -> None:
    assert list(parameters(settings)) == lines


def test_beside_the_file(workshop: Workshop, tmp_path: Path) -> None:
    artifact, out = workshop.of_demo("gguf"), tmp_path / "demo.gguf"
    result = export_artifact(artifact, "gguf", out)
    beside = tmp_path / "demo.Modelfile"
    assert f"Ollama: ollama create NAME -f {beside}" in result.runs_in
    tokenizer = load_tokenizer(artifact)
    lines = beside.read_text().splitlines()
    assert lines[0] == "FROM ./demo.gguf"
    (stop,) = [line for line in lines if line.startswith("PARAMETER stop ")]
    assert json.loads(stop.removeprefix("PARAMETER stop ")) == tokenizer.eos_token
    out.unlink()
    with pytest.raises(InputError, match=r"demo.Modelfile exists: expected a new file, or `overwrite=True`"):
        export_artifact(artifact, "gguf", out)
    assert not out.exists()
    export_artifact(artifact, "gguf", out, overwrite=True)


def test_every_token_that_ends_an_answer(workshop: Workshop) -> None:
    tokenizer = load_tokenizer(workshop.of_demo("gguf"))
    words = tokenizer.convert_ids_to_tokens([5, 6])
    found = [
        json.loads(line.removeprefix("PARAMETER stop ")) for line in stops({"eos_token_id": [5, 6, 99999]}, tokenizer)
    ]
    assert found == words


def test_its_name() -> None:
    assert modelfile_path(Path("a/b.gguf")) == Path("a/b.Modelfile")
    assert modelfile_path(Path("b.q4")) == Path("b.q4.Modelfile")
    assert users("gguf", "x.gguf")[1] == "Ollama: ollama create NAME -f x.Modelfile"
