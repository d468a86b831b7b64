"""Copies of a loaded artifact compute the same: deepcopy, pickle, torch.save, and what save_pretrained wrote."""

from __future__ import annotations

import copy
import io
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

import jointquant
from conftest import make_model, possible, small
from jointquant.errors import InputError
from jointquant.rotations.bundle import ROTATIONS_NAME
from jointquant.runtime.linear import PackedLinear
from jointquant.runtime.loading import load

RECIPES = {
    "w8": ("rtn", ("activations.num_bits=8", "weights.group_size=null")),
    "learned": (
        "w4a4kv4",
        (
            "weights.group_size=null",
            "refinement.steps=2",
            "refinement.rounds=0",
            *(f"rotations.{r}.steps=2" for r in ("r1", "r2", "r3")),
        ),
    ),
}
IDS = torch.randint(0, 2048, (2, 16), generator=torch.Generator().manual_seed(1))


def saved(model: PreTrainedModel) -> PreTrainedModel:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)  # type: ignore[no-any-return]


COPIES: dict[str, Callable[[PreTrainedModel], PreTrainedModel]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": saved,
}


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    return model(input_ids=IDS).logits


@pytest.fixture(scope="module", params=RECIPES)
def sound(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tokenizer) -> Path:
    """To be read only."""
    preset, changes = RECIPES[request.param]
    out = tmp_path_factory.mktemp("sound") / "a"
    recipe = jointquant.load_recipe(preset, small(*possible("llama"), *changes))
    jointquant.quantize(make_model("llama"), out, recipe, tokenizer=tokenizer)
    return out


@pytest.fixture
def artifact(sound: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return Path(shutil.copytree(sound, tmp_path / "a"))


@pytest.mark.parametrize("kernels", ["auto", "reference"])
def test_copies_compute_the_same(kernels: str, sound: Path) -> None:
    model = load(sound, kernels=kernels)
    expected = logits(model)
    if kernels == "auto":
        packed = [module for module in model.modules() if isinstance(module, PackedLinear)]
        assert any(module.prepared_weights() for module in packed)
    for name, make in COPIES.items():
        copied = make(model)
        assert torch.equal(logits(copied), expected), name
        assert {m.mode for m in copied.modules() if isinstance(m, PackedLinear)} == {m.mode for m in packed_of(model)}
    assert torch.equal(logits(model), expected)
    config = pickle.loads(pickle.dumps(model.config))
    assert config.model_type == model.config.model_type


def packed_of(model: PreTrainedModel) -> list[PackedLinear]:
    return [module for module in model.modules() if isinstance(module, PackedLinear)]


@pytest.mark.parametrize("through", [*COPIES, "nothing"])
def test_saved_again_it_is_whole(through: str, artifact: Path, tmp_path: Path) -> None:
    model = COPIES.get(through, lambda model: model)(AutoModelForCausalLM.from_pretrained(artifact))
    expected, again = logits(model), tmp_path / "again"
    model.save_pretrained(again)
    has = (artifact / ROTATIONS_NAME).exists()
    assert (again / ROTATIONS_NAME).exists() == has
    if has:
        assert (again / ROTATIONS_NAME).read_bytes() == (artifact / ROTATIONS_NAME).read_bytes()
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(again)), expected)
    assert torch.equal(logits(load(again, kernels="auto")), expected)
    model.save_pretrained(artifact)  # over itself
    assert torch.equal(logits(load(artifact, kernels="auto")), expected)


@pytest.mark.parametrize("sound", ["learned"], indirect=True)
def test_rotations_that_are_missing_are_not_none(artifact: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(artifact)
    (artifact / ROTATIONS_NAME).unlink()
    with pytest.raises(InputError, match="has gone"):
        model.save_pretrained(tmp_path / "again")
    base = tmp_path / "base"
    make_model("llama").save_pretrained(base)
    for opened in (
        lambda: load(artifact),
        lambda: AutoModelForCausalLM.from_pretrained(artifact),
        lambda: jointquant.export_artifact(artifact, "dense", tmp_path / "dense", base=base),
        lambda: jointquant.export_artifact(artifact, "compressed-tensors", tmp_path / "ct"),
    ):
        with pytest.raises(InputError, match=r"is missing: the artifact's recipe merges R1 \(learned\) and R2"):
            opened()
