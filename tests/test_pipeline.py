"""Artifacts: parity with transformers, generation with a cache, refusal without this package, determinism."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import jointquant
from conftest import FAMILIES, make_model, possible, small, token_by_token
from jointquant.errors import InputError
from jointquant.runtime.loading import load_tokenizer
from texts import TEXTS

INPUT_IDS = torch.randint(0, 2048, (2, 20), generator=torch.Generator().manual_seed(3))


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("family", FAMILIES)
def test_all_widths_at_16_equal_the_original(family: str, tmp_path: Path, tokenizer) -> None:
    model = make_model(family)
    recipe = jointquant.load_recipe("fp16", small())
    jointquant.quantize(model, tmp_path / "a", recipe, tokenizer=tokenizer)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    with torch.no_grad():
        expected, actual = model(input_ids=INPUT_IDS).logits, loaded(input_ids=INPUT_IDS).logits
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    assert torch.equal(loaded.generate(INPUT_IDS, **options), model.generate(INPUT_IDS, **options))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_cache_gives_the_same_logits(family: str, tmp_path: Path, tokenizer) -> None:
    """With everything at 4 bits: token by token through the cache, and all at once."""
    recipe = quick("quarot", *possible(family))
    jointquant.quantize(make_model(family), tmp_path / "a", recipe, tokenizer=tokenizer)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    with torch.no_grad():
        whole = loaded(input_ids=INPUT_IDS, use_cache=False).logits
    # A value on the border between two grid points may round either way; most logits agree to rounding.
    close = torch.isclose(token_by_token(loaded, INPUT_IDS), whole, rtol=1e-3, atol=1e-3)
    assert close.float().mean() > 0.97


def test_quantization_is_on(tmp_path: Path, tokenizer) -> None:
    """Each switch changes the logits of the loaded artifact."""
    model = make_model("llama")
    changes = {
        "weights": ["weights.num_bits=4"],
        "activations": ["activations.num_bits=4"],
        "kv_cache": ["kv_cache.num_bits=4"],
    }
    with torch.no_grad():
        expected = model(input_ids=INPUT_IDS).logits
    for name, change in changes.items():
        recipe = jointquant.load_recipe("fp16", small(*change))
        jointquant.quantize(model, tmp_path / name, recipe, tokenizer=tokenizer)
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        with torch.no_grad():
            error = (loaded(input_ids=INPUT_IDS).logits - expected).abs().max() / expected.abs().max()
        assert error > 1e-2, name


def quick(preset: str, *changes: str, seed: int = 0) -> jointquant.Recipe:
    return jointquant.load_recipe(preset, small(*changes, seed=seed))


LEARNED = ("rotations.r1.steps=5", "rotations.r2.steps=5")


def test_same_seed_same_bytes(save_model, tmp_path: Path) -> None:
    folder = save_model("llama")
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        jointquant.quantize(folder, tmp_path / name, quick("dartquant", *LEARNED, seed=seed))
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    different = {name for name, digest in digests(tmp_path / "a").items() if digests(tmp_path / "c")[name] != digest}
    assert {"rotations.safetensors", "model-00002-of-00005.safetensors"} <= different


def test_calibration_is_given_beside_the_recipe(save_model, tmp_path: Path) -> None:
    model, text = save_model("llama"), TEXTS / "calibration.txt"
    jointquant.quantize(
        model, tmp_path / "out", "rtn", calib=text, num_samples=3, seqlen=16, changes=["weights.num_bits=5"]
    )
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    written = config["quantization_config"]["recipe"]
    calibration = written["calibration"]
    assert (calibration["num_samples"], calibration["seqlen"], written["weights"]["num_bits"]) == (3, 16, 5)


def test_source_makes_no_difference(save_model, tmp_path: Path) -> None:
    """One file, many shards, or a model in memory: the same tensors."""
    single, sharded = save_model("qwen2"), save_model("qwen2", max_shard_size="100KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    jointquant.quantize(single, tmp_path / "a", quick("quarot"))
    jointquant.quantize(sharded, tmp_path / "b", quick("quarot"))
    jointquant.quantize(make_model("qwen2"), tmp_path / "c", quick("quarot"), tokenizer=load_tokenizer(single))
    shards = [name for name in digests(tmp_path / "a") if name.endswith(".safetensors")]
    for other in ("b", "c"):
        assert {n: digests(tmp_path / "a")[n] for n in shards} == {n: digests(tmp_path / other)[n] for n in shards}


def test_a_model_in_memory_is_not_changed(tmp_path: Path, tokenizer) -> None:
    model = make_model("llama")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    jointquant.quantize(model, tmp_path / "a", quick("quarot"), tokenizer=tokenizer)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not hasattr(model.config, "quantization_config")


WITH_PACKAGE = """
import sys, jointquant
assert "transformers" not in sys.modules
from transformers import LlamaForCausalLM
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING
assert "jointquant" in AUTO_QUANTIZATION_CONFIG_MAPPING  # also for whoever names the class
assert "jointquant.runtime.integration" not in sys.modules
"""


def test_refused_without_the_package(save_model, tmp_path: Path) -> None:
    jointquant.quantize(save_model("llama"), tmp_path / "a", quick("rtn"))
    code = f"from transformers import AutoModelForCausalLM as A; A.from_pretrained({str(tmp_path / 'a')!r})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert result.returncode != 0
    assert "jointquant_llama" in result.stderr
    done = subprocess.run([sys.executable, "-c", WITH_PACKAGE + code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_an_incomplete_artifact_is_refused(save_model, tmp_path: Path) -> None:
    jointquant.quantize(save_model("llama"), tmp_path / "a", quick("rtn"))
    shard = tmp_path / "a" / "model-00003-of-00005.safetensors"
    tensors = load_file(shard)
    tensors.pop("model.layers.1.mlp.up_proj.weight_scale")
    save_file(tensors, shard, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"up_proj\.weight_scale"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "a")


def test_other_attention_is_refused(save_model, tmp_path: Path) -> None:
    jointquant.quantize(save_model("llama"), tmp_path / "a", quick("rtn"))
    with pytest.raises(InputError, match="eager"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "a", attn_implementation="eager")


def test_scales_keep_their_dtype(save_model, tmp_path: Path) -> None:
    jointquant.quantize(save_model("llama"), tmp_path / "a", quick("rtn"))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "a", dtype=torch.bfloat16)
    linear = loaded.get_submodule("model.layers.0.mlp.up_proj")
    assert linear.weight_scale.dtype == torch.float32
    assert torch.isfinite(loaded(input_ids=INPUT_IDS).logits).all()


def test_a_loaded_artifact_saves_again(save_model, tmp_path: Path) -> None:
    jointquant.quantize(save_model("llama"), tmp_path / "a", quick("quarot"))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    loaded.save_pretrained(tmp_path / "b")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "b")
    assert torch.equal(again(input_ids=INPUT_IDS).logits, loaded(input_ids=INPUT_IDS).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tokenizer_is_included(family: str, save_model, tmp_path: Path) -> None:
    folder = save_model(family)
    jointquant.quantize(folder, tmp_path / "a", quick("rtn"))
    text = (TEXTS / "heldout.txt").read_text()[:20000]
    expected = AutoTokenizer.from_pretrained(folder)(text).input_ids
    assert AutoTokenizer.from_pretrained(tmp_path / "a")(text).input_ids == expected


WIDTHS = st.sampled_from([2, 3, 4, 5, 6, 7, 8, 16])
SYMMETRY = st.sampled_from(["true", "false"])
RATIO = st.sampled_from(["1.0", "0.9"])
INTEGERS = st.builds(
    "type: int, num_bits: {}, symmetric: {}, group_size: {}".format, WIDTHS, SYMMETRY, st.sampled_from(["null", "16"])
)
CODEBOOK = st.builds("type: nf4, num_bits: {}, symmetric: true, group_size: 16".format, st.sampled_from([4, 16]))
STORED = INTEGERS | CODEBOOK
WEIGHTS = st.builds("{{{}, method: {}}}".format, STORED, st.sampled_from(["rtn", "gptq"]))
EMBEDDINGS = st.builds("{{{}}}".format, STORED)
ACTIVATIONS = st.builds(
    "{{num_bits: {}, symmetric: {}, {}, clip_ratio: {}}}".format,
    WIDTHS,
    SYMMETRY,
    st.sampled_from(
        [
            "strategy: token",
            "strategy: token, group_size: 16",
            "strategy: group, group_size: 16",
            "strategy: tensor",
            "strategy: channel",
        ]
    ),
    RATIO | st.just("search"),
)
RANGES = st.builds(
    "num_bits: {}, symmetric: {}, group_size: {}, clip_ratio: {}".format,
    WIDTHS,
    SYMMETRY,
    st.sampled_from(["null", "4"]),
    RATIO,
)
CACHE = st.builds("{{{}, keys: {{{}}}, values: {{{}}}}}".format, RANGES, RANGES | st.just(""), RANGES | st.just(""))


@given(
    weights=WEIGHTS,
    activations=ACTIVATIONS,
    cache=CACHE,
    head=WEIGHTS,
    embeddings=EMBEDDINGS,
    alpha=st.sampled_from(["null", "0.5"]),
    rotations=st.sets(st.sampled_from(["r1", "r2", "r3", "r4"])),
    override=st.none() | st.builds("[{{modules: '*.mlp.*', weights: {}}}]".format, WEIGHTS),
)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_combination_reloads(
    tmp_path_factory, tokenizer, weights, activations, cache, head, embeddings, alpha, rotations, override
) -> None:
    """All settings of all quantizers × smoothing × rotations: the loaded logits are finite, and the same again.

    Where NF4 weights meet quantized activations, the run is refused instead.
    """
    changes = [f"rotations.{name}.kind=hadamard" for name in sorted(rotations)]
    changes += [f"weights={weights}", f"activations={activations}", f"kv_cache={cache}", f"smoothing.alpha={alpha}"]
    changes += [f"head={head}", f"embeddings={embeddings}", *([f"overrides={override}"] if override else [])]
    recipe = quick("fp16", *changes)
    folder = tmp_path_factory.mktemp("grid")
    model = make_model("llama", num_hidden_layers=1)
    jointquant.quantize(model, folder / "a", recipe, tokenizer=tokenizer)
    with torch.no_grad():
        logits = [AutoModelForCausalLM.from_pretrained(folder / "a")(input_ids=INPUT_IDS).logits for _ in range(2)]
    assert torch.isfinite(logits[0]).all()
    assert torch.equal(*logits)
