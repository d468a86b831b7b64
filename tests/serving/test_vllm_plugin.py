"""Artifacts behind vLLM's own server by our plugin: many requests at once, long ones, streams; and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
import torch

import jointquant
from conftest import DEMO, make_model, small
from export.vllm_outcomes import VLLM_SIZES, our_log_probabilities, tokenizer_of
from export.vllm_plugins import ENTRY, put_on_the_path
from export.vllm_runtime import vllm_python
from imports import ROOT
from jointquant import InputError, verify
from jointquant.verification.at_server import AtServer
from jointquant.verification.vllm_server import EAGER, vllm_at

ONLINE = ("weights.group_size=null", "refinement.steps=0", "rotations.r3.kind=hadamard", "rotations.r4.kind=hadamard")
"""R1 to R4, and weights alone in 4 bits: no value lies between two steps, so that any difference tells."""
AT_ONCE, SEQLEN, LONG = 32, 64, 480
CHUNKED = (*EAGER, "--max-num-batched-tokens", "128", "--max-num-seqs", str(AT_ONCE))
"""So that a long prompt is read in four steps, and others are answered between them."""


def test_the_package_names_its_plugin() -> None:
    pyproject = (ROOT.parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    name, _, place = ENTRY.partition(" = ")
    assert f'[project.entry-points."vllm.general_plugins"]\n{name} = "{place}"\n' in pyproject
    module, _, function = place.partition(":")
    source = ROOT.parent / f"{module.replace('.', '/')}.py"
    assert f"\ndef {function}() -> None:\n" in source.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    vllm_python()
    out = tmp_path_factory.mktemp("served") / "online"
    recipe = jointquant.load_recipe("w4a16", small(*ONLINE))
    jointquant.quantize(DEMO / "model", out, recipe)
    return out


@pytest.fixture(scope="module")
def server(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AtServer]:
    with pytest.MonkeyPatch.context() as patch:
        put_on_the_path(tmp_path_factory.mktemp("path"), patch, ours=True)
        with vllm_at(artifact, "float32", "float32", CHUNKED) as found:
            yield found


def token_ids(count: int, seed: int) -> list[int]:
    ids: list[int] = torch.randint(5, 2000, (count,), generator=torch.Generator().manual_seed(seed)).tolist()
    return ids


def completion(server: AtServer, prompt: list[int], **settings: object) -> bytes:
    """The body of the answer to a request for 24 tokens, the likeliest."""
    asked = {"model": server.model, "prompt": prompt, "max_tokens": 24, "temperature": 0, "ignore_eos": True}
    body = json.dumps(asked | settings).encode()
    with urlopen(
        Request(f"{server.root}/v1/completions", body, {"Content-Type": "application/json"}), timeout=300
    ) as answer:
        found: bytes = answer.read()
    return found


def test_it_computes_what_the_fingerprint_says(artifact: Path, server: AtServer) -> None:
    found = verify(server.root, fingerprint=artifact, dtype="float32")
    assert (found.passed, found.faults) == (True, ())


def test_many_requests_at_once_and_a_long_one(artifact: Path, server: AtServer) -> None:
    """Log-probabilities of each token, beside our own evaluation of each alone."""
    prompts = [token_ids(SEQLEN, seed) for seed in range(AT_ONCE - 1)] + [token_ids(LONG, AT_ONCE)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = list(pool.map(server.log_probabilities, prompts))
    model = jointquant.load(artifact, dtype="float32")
    for prompt, theirs in zip(prompts, found, strict=True):
        ours = our_log_probabilities(model, torch.tensor([prompt]))[0]
        assert (torch.tensor(theirs, dtype=torch.float64) - ours).abs().max() < 1e-3


def test_streams(server: AtServer) -> None:
    """What is streamed is what is answered at once, where the prompt's pages are there already, too."""
    prompt = token_ids(SEQLEN, 99)
    whole = json.loads(completion(server, prompt))["choices"][0]["text"]
    lines = completion(server, prompt, stream=True).decode().splitlines()
    events = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    assert "".join(json.loads(event)["choices"][0]["text"] for event in events[:-1]) == whole
    assert len(events) > 10


def test_other_families_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vllm_python()
    put_on_the_path(tmp_path / "path", monkeypatch, ours=True)
    recipe = jointquant.load_recipe("rtn", small("weights.group_size=null"))
    model = make_model("starcoder2", **VLLM_SIZES)
    jointquant.quantize(model, tmp_path / "a", recipe, tokenizer=tokenizer_of("llama"))
    with (
        pytest.raises(InputError, match="plugin does not run artifacts of starcoder2"),
        vllm_at(tmp_path / "a", "float32", "auto"),
    ):
        pass
