"""Numbers at the edges: zeros work in every recipe; what overflows or vanishes is refused with the tensor's name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import jointquant
from commands import assert_refused, run
from conftest import make_model, small
from hostile.damage import UP, tensors
from jointquant.errors import OverflowedError
from jointquant.models.overflow import narrowed
from jointquant.quantization.integer import IntFormat
from jointquant.quantization.weights import check_scales
from jointquant.recipe.recipe import load_recipe
from texts import TEXTS

Edit = Callable[[dict[str, Tensor]], object]
PER_CHANNEL = ("weights.group_size=null", "activations.group_size=null", "kv_cache.group_size=null")
VALUE, EMBEDDING = "model.layers.1.self_attn.v_proj.weight", "model.embed_tokens.weight"


def scaled(part: str, factor: float, rows: slice = slice(None)) -> Edit:
    """Multiply some rows of the tensors whose names have ``part`` in them."""

    def edit(loaded: dict[str, Tensor]) -> None:
        for name in loaded:
            if part in name:
                loaded[name][rows] *= factor

    return edit


TINY: dict[str, Edit] = {
    "a KV head of zeros": scaled(VALUE, 0, slice(12)),
    "a norm whose gain is zero": scaled("layers.1.input_layernorm", 0),
    "some zeros in a norm": scaled("layers.1.post_attention_layernorm", 0, slice(0, None, 3)),
    "a layer of zeros": scaled("layers.1.", 0),
    "all layers of zeros": scaled("layers.", 0),
    "an embedding of zeros": scaled(EMBEDDING, 0),
    "rows of an embedding of zeros": scaled(EMBEDDING, 0, slice(1024)),
    "tiny values": scaled(VALUE, 1e-30),
    "a tiny layer": scaled("layers.1.", 1e-30),
    "tiny keys": scaled("layers.1.self_attn.k_proj", 1e-30),
}
OPTIMIZERS = ("newton_schulz", "qr", "cayley")
RECIPES: dict[str, tuple[str, tuple[str, ...]]] = {
    "w4a4kv4": ("w4a4kv4", ("refinement.steps=2", "refinement.rounds=0")),
    "w4a4kv16": ("w4a4kv16", ("refinement.steps=2", "refinement.rounds=0")),
    "fast": ("fast", ()),
    "jointquant": ("jointquant", ()),
    "gptq": ("gptq", ()),
    "smoothed": ("w4a8kv8", ("smoothing.alpha=0.5",)),
    "balanced": ("quarot", ("kv_cache.balancing=full", "kv_cache.centring=both", "activations.centring=mean")),
    "static": ("quarot", ("activations.strategy=tensor", "activations.clip_ratio=search")),
    **{
        f"dartquant {name}": ("dartquant", tuple(f"rotations.{r}.optimizer={name}" for r in ("r1", "r2")))
        for name in OPTIMIZERS
    },
}


def recipe_of(name: str) -> jointquant.Recipe:
    preset, changes = RECIPES[name]
    rotations = load_recipe(preset).rotations
    learned = [r for r in ("r1", "r2", "r3", "r4") if getattr(rotations, r).kind == "learned"]
    return load_recipe(preset, small(*PER_CHANNEL, *changes, *(f"rotations.{r}.steps=3" for r in learned)))


@pytest.fixture
def model(tmp_path: Path, tokenizer) -> Path:
    make_model("llama").save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


WITH_ALL = ("a KV head of zeros", "a layer of zeros", "an embedding of zeros")
"""What is tried with every recipe; the rest with the default."""
PAIRS = [(values, recipe) for values in TINY for recipe in RECIPES if values in WITH_ALL or recipe == "w4a4kv4"]


@pytest.mark.parametrize(("values", "recipe"), PAIRS)
def test_zeros_simply_work(values: str, recipe: str, model: Path, tmp_path: Path) -> None:
    tensors(TINY[values])(model)
    jointquant.quantize(model, tmp_path / "out", recipe_of(recipe))
    ids = torch.randint(0, 2048, (1, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = AutoModelForCausalLM.from_pretrained(tmp_path / "out")(ids).logits
        expected = AutoModelForCausalLM.from_pretrained(model)(ids).logits
    assert torch.isfinite(found).all()
    if expected.abs().max() == 0:
        assert found.abs().max() < 1e-6
    else:  # 4 bits of random weights: near, and not another model
        assert torch.nn.functional.cosine_similarity(found.flatten(), expected.flatten(), 0) > 0.5


LARGE: dict[str, tuple[Edit, str]] = {
    "weights of 1e30": (scaled(UP, 1e30), f"tensor {UP} holds values up to "),
    "weights of 3e38": (lambda t: t[UP].fill_(3e38), f"tensor {UP} holds values up to 3e+38"),
    "an embedding of 1e25": (scaled(EMBEDDING, 1e25), f"tensor {EMBEDDING} holds values up to "),
    "layers that multiply": (scaled("layers.1.", 1e15), "are in tensor model.layers.1."),
}


@pytest.mark.parametrize("recipe", ["gptq", "dartquant", "w4a4kv4"])
@pytest.mark.parametrize("values", LARGE)
def test_what_overflows_is_named_and_leaves_nothing_behind(
    values: str, recipe: str, model: Path, tmp_path: Path, capsys
) -> None:
    edit, message = LARGE[values]
    sound = load_file(model / "model.safetensors")
    tensors(edit)(model)
    changes = [f"--set={change}" for change in (*small(), *PER_CHANNEL)]
    command = ["quantize", str(model), "--out", str(tmp_path / "out"), "--recipe", recipe, *changes]
    assert_refused(command, message, capsys, tmp_path)
    save_file(sound, model / "model.safetensors", {"format": "pt"})
    other = [*command[:5], "rtn", *changes, "--set=calibration.seed=7"]
    assert run(*other) == 0  # another run into the same folder


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("factor", "fits"),
    [(1.0, (True, True)), (1e6, (True, False)), (1e-6, (True, True)), (1e-9, (True, False)), (0, (True, True))],
)
def test_dtypes_that_fit(factor: float, fits: tuple[bool, bool], dtype: torch.dtype) -> None:
    """By value: bfloat16, float16. 1e-6 is among float16's smallest numbers."""
    weight = torch.randn(4, 32, generator=torch.Generator().manual_seed(0)) * factor
    fit = fits[dtype == torch.float16]
    if fit:
        torch.testing.assert_close(narrowed("w", weight, dtype).float(), weight, rtol=0.02, atol=1e-7)
        return
    with pytest.raises(jointquant.InputError, match=r"tensor w has values .* expected `dtype` bfloat16 or float32"):
        narrowed("w", weight, dtype)


@pytest.mark.parametrize(
    ("factor", "fits"), [(1.0, True), (1e5, True), (1e7, False), (1e-3, True), (1e-8, False), (0, True)]
)
@pytest.mark.parametrize("symmetric", [True, False])
def test_scales_that_fit(factor: float, fits: bool, symmetric: bool) -> None:
    weight = torch.randn(4, 32, generator=torch.Generator().manual_seed(0)) * factor
    fmt = IntFormat(4, symmetric)
    check_scales("w", weight, fmt, torch.bfloat16)
    check_scales("w", weight, fmt, torch.float32)
    if fits:
        check_scales("w", weight, fmt, torch.float16)
        return
    with pytest.raises(jointquant.InputError, match=r"the weights of w reach .* expected scale_dtype bfloat16"):
        check_scales("w", weight, fmt, torch.float16)


def uneven(loaded: dict[str, Tensor]) -> None:
    """The same function, whose up projections are large and whose down projections are small."""
    scaled("up_proj.weight", 1e7)(loaded)
    scaled("down_proj.weight", 1e-7)(loaded)


@pytest.mark.parametrize("what", ["dequantized", "rotated"])
def test_dense_exports_hold_every_value(what: str, model: Path, tmp_path: Path) -> None:
    tensors(uneven)(model)
    jointquant.quantize(
        model,
        tmp_path / "a",
        load_recipe("gptq", small(*PER_CHANNEL, "activations.num_bits=16", "kv_cache.num_bits=16")),
    )
    more = {"dequantized": True} if what == "dequantized" else {"base": model}
    with pytest.raises(jointquant.InputError, match=r"tensor model\.layers\.0\.mlp\.\w+\.weight has values .*bfloat16"):
        jointquant.export_artifact(tmp_path / "a", "dense", tmp_path / "half", dtype="float16", **more)
    assert not [path for path in tmp_path.iterdir() if "half" in path.name]
    jointquant.export_artifact(tmp_path / "a", "dense", tmp_path / "brain", dtype="bfloat16", **more)
    for file in (tmp_path / "brain").glob("*.safetensors"):
        assert all(torch.isfinite(tensor).all() for tensor in load_file(file).values())


@pytest.mark.parametrize("changes", [("weights",), ("head",), ("embeddings",)])
@pytest.mark.parametrize("preset", ["rtn", "gptq"])
def test_scales_of_float16(changes: tuple[str], preset: str, model: Path, tmp_path: Path) -> None:
    (what,) = changes
    part = {"weights": "up_proj.weight", "head": "lm_head", "embeddings": "embed_tokens"}[what]
    tensors(scaled(part, 1e7))(model)
    recipe = load_recipe(preset, small(*PER_CHANNEL, f"{what}.num_bits=4", f"{what}.scale_dtype=float16"))
    with pytest.raises(jointquant.InputError, match="expected scale_dtype bfloat16 or float32"):
        jointquant.quantize(model, tmp_path / "out", recipe)
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


def test_a_layer_that_overflows_in_eval(model: Path) -> None:
    tensors(scaled("layers.1.", 1e15))(model)
    with pytest.raises(OverflowedError, match="the output of a layer is not finite"):
        jointquant.evaluate(model, (str(TEXTS / "heldout.txt"),), seqlen=16, max_tokens=64, memory_budget=1)
