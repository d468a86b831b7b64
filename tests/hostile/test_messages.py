"""What is really at fault is what the one line says: odd sizes, another tokenizer library, an artifact as model."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

import jointquant
from commands import assert_refused
from conftest import DEMO, make_model, possible, small
from jointquant.errors import fault_of_machine
from jointquant.models.configuration import blamed
from jointquant.runtime.loading import load_tokenizer
from texts import TEXTS

PER_CHANNEL = ("weights.group_size=null", "activations.group_size=null", "kv_cache.group_size=null")
HADAMARD = tuple(f"rotations.{r}.kind=hadamard" for r in ("r1", "r2", "r3", "r4"))
NONE = tuple(change.replace("hadamard", "none") for change in HADAMARD)
OPT_ODD = {"hidden_size": 12, "num_attention_heads": 4, "word_embed_proj_dim": 12}
ODD: dict[str, tuple[str, dict[str, object], tuple[str, ...], str]] = {
    "R4": (
        "llama",
        {"intermediate_size": 81},
        HADAMARD,
        "rotations.r4 is hadamard: the model's down projections read 81",
    ),
    "R3": ("opt", OPT_ODD, (*NONE, HADAMARD[2]), "rotations.r3 is hadamard: the model's head_dim is 3"),
    "R2": ("opt", OPT_ODD, (*NONE, HADAMARD[1]), "rotations.r2 is hadamard: the model's head_dim is 3"),
    "R2, learned": (
        "opt",
        OPT_ODD,
        (*NONE, "rotations.r2.kind=learned"),
        "kind=none or --set rotations.r2.init=identity",
    ),
    "R1": (
        "opt",
        {"hidden_size": 15, "num_attention_heads": 3, "word_embed_proj_dim": 15},
        (*NONE, HADAMARD[0]),
        "rotations.r1 is hadamard: the model's hidden_size is 15",
    ),
    "rotary pairs": (
        "llama",
        {"head_dim": 3},
        NONE,
        "head_dim is 3 in this model: rotary embeddings turn channels in pairs",
    ),
    "a single channel": ("llama", {"head_dim": 1}, NONE, "head_dim is 1 in this model: rotary embeddings"),
}


def quantize(model: Path, out: Path, *changes: str) -> list[str]:
    settings = [f"--set={change}" for change in small(*PER_CHANNEL, *changes)]
    return ["quantize", str(model), "--out", str(out), "--recipe", "quarot", *settings]


def saved(folder: Path, family: str, **changes: object) -> Path:
    make_model(family, **changes).save_pretrained(folder)
    load_tokenizer(DEMO / "model").save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ODD)
def test_odd_sizes(name: str, tmp_path: Path, capsys) -> None:
    family, sizes, changes, message = ODD[name]
    model = saved(tmp_path / "model", family, **sizes)
    assert_refused(quantize(model, tmp_path / "out", *changes), message, capsys, tmp_path)


@pytest.mark.parametrize("head_dim", [1, 3])
def test_odd_heads_without_pairs_work(head_dim: int, tmp_path: Path) -> None:
    """OPT has no rotary embeddings: at 4 bits, without a Hadamard matrix of the heads."""
    size = 4 * head_dim
    model = saved(tmp_path / "model", "opt", hidden_size=size, num_attention_heads=4, word_embed_proj_dim=size)
    changes = small(*PER_CHANNEL, "rotations.r2.kind=none", "rotations.r3.kind=none")
    jointquant.quantize(model, tmp_path / "out", jointquant.load_recipe("quarot", changes))
    text = str(TEXTS / "heldout.txt")
    assert jointquant.evaluate(tmp_path / "out", (text,), seqlen=16, max_tokens=64).perplexity[text] > 1


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_an_artifact_is_no_model_to_quantize(family: str, tmp_path: Path, capsys) -> None:
    model = saved(tmp_path / "model", family)
    jointquant.quantize(model, tmp_path / "a", jointquant.load_recipe("rtn", small(*possible(family), *PER_CHANNEL)))
    message = f"an artifact of jointquant (jointquant_{family}) is already quantized: expected the model it was made of"
    assert_refused(quantize(tmp_path / "a", tmp_path / "b"), message, capsys, tmp_path)


def test_a_sentencepiece_model_alone(tmp_path: Path, capsys, monkeypatch) -> None:
    model = saved(tmp_path / "model", "llama")
    for path in model.glob("tokenizer*"):
        path.unlink()
    (model / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "sentencepiece" else find(name))
    assert_refused(
        quantize(model, tmp_path / "out"), "which sentencepiece reads: expected tokenizer.json", capsys, tmp_path
    )


def test_missing_memory_is_not_the_models_fault() -> None:
    """It passes on to whoever tells the user about the machine; anything else is the model's."""
    missing = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator"), blamed("the model is at fault"):
        raise missing
    assert fault_of_machine(missing) is not None
    told = "the model is at fault: RuntimeError: shapes differ"
    with pytest.raises(jointquant.InputError, match=told), blamed("the model is at fault"):
        raise RuntimeError("shapes differ")
