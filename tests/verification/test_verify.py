"""Damage done on purpose is found and named in each runtime; what is right passes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import jointquant
from jointquant import export_artifact, verify
from jointquant.artifact.tiers import OBSTACLES
from jointquant.export import gguf_tensors
from jointquant.trust.folder import FINGERPRINT_NAME
from verification.damage import DAMAGE, TURNED, damaged, tiny, without_r4
from verification.server import served

R4 = ("rotations.r4.kind=hadamard", "rotations.r4.block_size=16")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("plain") / "a", "fp16", *TURNED)


@pytest.fixture(scope="module")
def dense(plain: Path) -> Path:
    export_artifact(plain, "dense", plain.parent / "dense")
    return plain.parent / "dense"


@pytest.fixture(scope="module")
def online(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("online") / "a", "fp16", *TURNED, *R4)


def test_what_is_right_passes(plain: Path, dense: Path, online: Path) -> None:
    for folder in (plain, dense, online):
        for dtype in ("float32", "bfloat16"):
            found = verify(folder, dtype=dtype)
            assert found.passed, (folder, found)
            assert found.difference < (1e-3 if dtype == "float32" else found.tolerance / 2)


def test_weights_that_were_rounded_once_more(plain: Path, tmp_path: Path) -> None:
    """float32 computes what is stored; what is stored is in bfloat16."""
    export_artifact(plain, "dense", tmp_path / "d", dtype="bfloat16")
    found, exact = verify(tmp_path / "d", dtype="float32"), verify(plain, dtype="float32")
    assert found.passed
    assert found.tolerance > exact.tolerance


@pytest.mark.parametrize("fault", DAMAGE)
def test_transformers(dense: Path, plain: Path, tmp_path: Path, fault: str) -> None:
    found = verify(damaged(dense, tmp_path / "d", fault, plain))
    assert (found.passed, found.faults) == (False, (fault,))


def test_transformers_drops_r4(online: Path, tmp_path: Path) -> None:
    export_artifact(online, "compressed-tensors", tmp_path / "d")
    with pytest.raises(jointquant.InputError, match="R4 is online here"):
        verify(tmp_path / "d")
    without_r4(tmp_path / "d")
    assert verify(tmp_path / "d").faults == ("r4_dropped",)


@pytest.mark.parametrize("fault", DAMAGE)
def test_a_server(dense: Path, plain: Path, tmp_path: Path, fault: str) -> None:
    folder = damaged(dense, tmp_path / "d", fault, plain)
    with served(folder, "prompt_logprobs") as url:
        assert verify(url, fingerprint=dense).faults == (fault,)
        assert verify(folder, runtime=url).faults == (fault,)


def test_a_server_that_knows_less(dense: Path) -> None:
    with served(dense, "echo") as url:
        found = verify(dense, runtime=url)
        assert (found.passed, found.not_asked) == (True, ("text_tokens", "chat"))


@pytest.mark.parametrize(("knows", "said"), [("neither", "an answer without them"), ("nothing", "status 404 null")])
def test_a_server_that_gives_no_log_probabilities(dense: Path, knows: str, said: str) -> None:
    """What it says instead is told: a server may have reasons of its own, such as a product that it lacks."""
    with served(dense, knows) as url, pytest.raises(jointquant.InputError, match=f"no log-probabilities.*{said}"):
        verify(dense, runtime=url)


@pytest.mark.parametrize("fault", ["", *DAMAGE, "r4_dropped", "rotary_halves"])
def test_llama_cpp(plain: Path, online: Path, tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: pip install 'jointquant[gguf-test]'")
    source = online if fault == "r4_dropped" else plain
    if fault in DAMAGE:
        source = damaged(plain, tmp_path / "d", fault, plain)
    if fault == "r4_dropped":
        monkeypatch.setitem(OBSTACLES, "gguf", lambda facts: [])
    if fault == "rotary_halves":
        monkeypatch.setattr(gguf_tensors, "interleave", lambda rows, heads: rows)
    export_artifact(source, "gguf", tmp_path / "a.gguf", digests="ignore")
    found = verify(tmp_path / "a.gguf")
    assert found.faults == ((fault,) if fault else ()), found
    assert found.passed == (not fault)


def test_unexplained_numbers_do_not_pass(dense: Path, tmp_path: Path) -> None:
    shutil.copytree(dense, tmp_path / "d")
    name = "model.layers.1.mlp.up_proj.weight"
    for shard in (tmp_path / "d").glob("model*.safetensors"):
        tensors = load_file(shard)
        if name in tensors:
            save_file(tensors | {name: torch.zeros_like(tensors[name])}, shard, metadata={"format": "pt"})
    found = verify(tmp_path / "d")
    assert (found.passed, found.faults) == (False, ())
    assert "no known fault explains it" in found.words[0]


def test_what_cannot_be_verified_is_said(dense: Path, tmp_path: Path) -> None:
    for arguments, words in (
        ({"subject": tmp_path / "none"}, "no such artifact"),
        ({"subject": tmp_path}, f"carries no {FINGERPRINT_NAME}"),
        ({"subject": "http://127.0.0.1:9"}, "is a server: expected `fingerprint`"),
        ({"subject": dense, "runtime": "http://127.0.0.1:9"}, "no server answers"),
        ({"subject": dense, "runtime": "llama.cpp"}, "llama.cpp reads files"),
        ({"subject": dense, "runtime": "onnx"}, "no runtime 'onnx'"),
    ):
        with pytest.raises(jointquant.InputError, match=words):
            verify(**arguments)  # type: ignore[arg-type]
