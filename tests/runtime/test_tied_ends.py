"""A tied head is stored once: what loads, streams and is exported has the bytes of a model that has both matrices."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

import jointquant
from conftest import make_model, possible, small
from jointquant.errors import InputError
from jointquant.models.layer import Place
from jointquant.models.registry import ARCHITECTURES
from jointquant.runtime.streaming import open_any_stream
from jointquant.trust.safetensors_header import read_metadata

CPU = torch.device("cpu")
PER_LAYER = "rotations.r1={kind: learned, strategy: independent, steps: 1, num_tokens: 64, batch_tokens: 64}"
CASES: dict[str, tuple[str, torch.dtype, str, dict[str, object]]] = {
    "llama": ("llama", torch.bfloat16, "rotations.r1.kind=hadamard", {}),
    "an R1 for each layer": ("llama", torch.float32, PER_LAYER, {}),
    "opt, which centres": ("opt", torch.bfloat16, "rotations.r1.kind=hadamard", {}),
    "opt, norms without weights": (
        "opt",
        torch.float32,
        "rotations.r1.kind=hadamard",
        {"layer_norm_elementwise_affine": False},
    ),
    "llama without R1": ("llama", torch.bfloat16, "rotations.r2.kind=hadamard", {}),
    "opt without R1, which does not centre": ("opt", torch.bfloat16, "rotations.r2.kind=hadamard", {}),
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


def state(model: PreTrainedModel) -> dict[str, Tensor]:
    """All tensors of a model, those included that no file holds."""
    return model.state_dict() | dict(model.named_buffers())


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
        loaded, wanted = (state(AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)) for folder in (once, both))
        assert loaded.keys() == wanted.keys()
        for name, tensor in wanted.items():
            assert loaded[name].dtype == tensor.dtype
            assert torch.equal(loaded[name], tensor), (dtype, name)
    stream, other = open_any_stream(once), open_any_stream(both)
    assert stream.source.shapes() == other.source.shapes()
    for name in other.source.shapes():
        assert torch.equal(stream.source.load(name), other.source.load(name)), name
    place = Place(CPU, torch.float32)
    assert torch.equal(stream.head(place).weight, other.head(place).weight)


@pytest.fixture
def artifact(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> Path:
    """Of a tied model."""
    recipe = jointquant.load_recipe("fp16", small("rotations.r1.kind=hadamard"))
    jointquant.quantize(make_model("llama", tie_word_embeddings=True), tmp_path / "a", recipe, tokenizer=tokenizer)
    return tmp_path / "a"


def test_saved_again_it_holds_both(artifact: Path, tmp_path: Path) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(artifact)
    loaded.save_pretrained(tmp_path / "b")
    assert {"model.embed_tokens.weight", "lm_head.weight"} <= stored(tmp_path / "b").keys()
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "b")
    assert again.config.quantization_config.format_version == 1
    assert all(torch.equal(tensor, state(again)[name]) for name, tensor in state(loaded).items())


def test_one_whose_gains_were_merged_without_r1_is_refused(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """As this version does not write it."""
    model = make_model("llama", tie_word_embeddings=True)
    folder = tmp_path / "a"
    jointquant.quantize(model, folder, jointquant.load_recipe("fp16", small()), tokenizer=tokenizer)
    shard = max(folder.glob("model-*.safetensors"))
    save_file(load_file(shard) | {"lm_head.norm_weight": torch.ones(48)}, shard, read_metadata(shard))
    with pytest.raises(InputError, match=r"keeps its gain: .* earlier version"):
        AutoModelForCausalLM.from_pretrained(folder)


def test_a_quantized_end_is_stored_beside_the_other(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    model = make_model("llama", tie_word_embeddings=True)
    for end, names in (("head", {"model.embed_tokens.weight"}), ("embeddings", {"lm_head.weight"})):
        recipe = jointquant.load_recipe("fp16", small(f"{end}.num_bits=8"))
        jointquant.quantize(model, tmp_path / end, recipe, tokenizer=tokenizer)
        assert names <= stored(tmp_path / end).keys()
        open_any_stream(tmp_path / end)


def test_other_rotations_are_refused(artifact: Path) -> None:
    """They are what the two ends are made with, so a changed file would change the model."""
    file = artifact / "rotations.safetensors"
    tensors = load_file(file)
    about = read_metadata(file)
    save_file({name: tensor.flip(-1).contiguous() for name, tensor in tensors.items()}, file, about)
    with pytest.raises(InputError, match=r"rotations\.safetensors in .* is not what was written"):
        AutoModelForCausalLM.from_pretrained(artifact)
    with pytest.raises(InputError, match=r"rotations\.safetensors in .* is not what was written"):
        open_any_stream(artifact).head(Place(CPU, torch.float32))


def test_an_unknown_dtype_is_refused(artifact: Path) -> None:
    config = artifact / "config.json"
    config.write_text(config.read_text().replace('"tied_head": "float32"', '"tied_head": "int3"'))
    with pytest.raises(InputError, match="unknown dtype of tied_head 'int3'"):
        jointquant.load(artifact, digests="ignore")


def test_exports_say_what_the_second_matrix_costs(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    recipe = jointquant.load_recipe(
        "w4a16",
        small("weights.group_size=16", "rotations.r1.kind=hadamard", "rotations.r2.kind=none", "refinement.steps=0"),
    )
    jointquant.quantize(make_model("llama", tie_word_embeddings=True), tmp_path / "a", recipe, tokenizer=tokenizer)
    size = 2048 * 48 * 4
    held = jointquant.export_artifact(tmp_path / "a", "compressed-tensors", tmp_path / "ct")
    assert held.untied_bytes == size
    tensors = stored(tmp_path / "ct")
    assert tensors["lm_head.weight"].nbytes == tensors["model.embed_tokens.weight"].nbytes == size
    half = jointquant.export_artifact(tmp_path / "a", "dense", tmp_path / "d", dequantized=True, dtype="bfloat16")
    assert half.untied_bytes == size // 2
    jointquant.export_artifact(tmp_path / "ct", "native", tmp_path / "back")
    assert "tied_head" not in (tmp_path / "back" / "config.json").read_text()
