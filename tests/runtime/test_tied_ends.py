"""A tied head is stored once: what loads, streams and is exported has the bytes of a model that has both matrices."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

import jointquant
from conftest import make_model, possible, small
from jointquant.errors import InputError
from jointquant.models.layer import Place
from jointquant.models.registry import ARCHITECTURES
from jointquant.runtime.streaming import open_any_stream

CPU = torch.device("cpu")
PER_LAYER = "rotations.r1={kind: learned, strategy: independent, steps: 1, num_tokens: 64, batch_tokens: 64}"
CASES: dict[str, tuple[str, torch.dtype, str, dict[str, object]]] = {
    "llama": ("llama", torch.bfloat16, "rotations.r1.kind=hadamard", {}),
    "an R1 for each layer": ("llama", torch.float32, PER_LAYER, {}),
    "opt, which centres": ("opt", torch.bfloat16, "rotations.r1.kind=hadamard", {}),
    "opt, norms without weights": ("opt", torch.float32, "rotations.r1.kind=hadamard", {"layer_norm_elementwise_affine": False}),
    "gemma2, which scales": ("gemma2", torch.bfloat16, "weights.num_bits=8", {}),
}


def same_but_untied(tied: PreTrainedModel) -> PreTrainedModel:
    """The same function of a model whose head is a matrix of its own."""
    config = type(tied.config).from_dict(tied.config.to_dict() | {"tie_word_embeddings": False})
    model = AutoModelForCausalLM.from_config(config, dtype=tied.dtype).eval()
    tensors = {name: tensor.clone() for name, tensor in tied.state_dict().items()}
    model.load_state_dict(tensors)
    return model


Pair = tuple[Path, Path]


@pytest.fixture
def pair(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> Callable[..., Pair]:
    """The artifact of a tied model, and that of the same model with two matrices."""

    def made(family: str, dtype: torch.dtype, change: str, sizes: dict[str, object]) -> Pair:
        tied = make_model(family, dtype, tie_word_embeddings=True, **sizes)
        recipe = jointquant.load_recipe("fp16", small(*possible(family, change)))
        for name, model in (("once", tied), ("both", same_but_untied(tied))):
            jointquant.quantize(model, tmp_path / name, recipe, tokenizer=tokenizer)
        return tmp_path / "once", tmp_path / "both"

    return made


def stored(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for file in sorted(folder.glob("model*.safetensors")):
        found |= load_file(file)
    return found


@pytest.mark.parametrize("case", CASES)
def test_it_loads_as_two_matrices_do(case: str, pair: Callable[..., Pair]) -> None:
    once, both = pair(*CASES[case])
    architecture = ARCHITECTURES[CASES[case][0]]
    embedding, head = architecture.embeddings[0], architecture.head
    names, expected = stored(once), stored(both)
    assert f"{embedding}.tied_weight" in names
    assert {f"{embedding}.weight", f"{head}.weight"}.isdisjoint(names)
    large = expected[f"{head}.weight"].nbytes
    saved = sum(t.nbytes for t in expected.values()) - sum(t.nbytes for t in names.values())
    assert large - 8 * 48 <= saved <= large
    for dtype in ("auto", torch.float32, torch.float16):
        loaded = AutoModelForCausalLM.from_pretrained(once, dtype=dtype).state_dict()
        wanted = AutoModelForCausalLM.from_pretrained(both, dtype=dtype).state_dict()
        assert loaded.keys() == wanted.keys()
        for name, tensor in wanted.items():
            assert loaded[name].dtype == tensor.dtype
            assert torch.equal(loaded[name], tensor), (dtype, name)
    stream, other = open_any_stream(once), open_any_stream(both)
    assert stream.source.shapes() == other.source.shapes()
    for name in other.source.shapes():
        assert stream.source.dtype(name) == other.source.dtype(name) if "packed" not in name else True
        assert torch.equal(stream.source.load(name), other.source.load(name)), name
    place = Place(CPU, torch.float32)
    assert torch.equal(stream.head(place).weight, other.head(place).weight)
