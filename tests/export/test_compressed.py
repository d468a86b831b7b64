"""compressed-tensors: validated and applied by its own library; integers equal on the way there and back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from compressed_tensors.quantization import QuantizationConfig
from compressed_tensors.transform import TransformConfig, apply_transform_config
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from conftest import DEMO
from export.artifacts import Workshop
from jointquant import InputError, export_artifact
from jointquant.export.artifact import Artifact
from jointquant.export.vllm_options import GUARDS
from jointquant.runtime.streaming import open_any_stream

INPUT_IDS = torch.randint(0, 2048, (2, 24), generator=torch.Generator().manual_seed(1))
MIXED = (
    "weights.group_size=16",
    "head.num_bits=8",
    'overrides=[{modules: "*.1.*", weights: {num_bits: 8, group_size: null}}, '
    '{modules: "*.2.mlp.*", weights: {num_bits: 16}}]',
)
WEIGHTS_ALONE = ("weights.symmetric=true", "activations.num_bits=16", "kv_cache.num_bits=16")
TINY = {
    "w3a16 packs across words": (
        "llama",
        "rtn",
        ("weights.num_bits=3", "activations.num_bits=16", "kv_cache.num_bits=16"),
    ),
    "w8a8, asymmetric inputs": (
        "llama",
        "w4a16",
        ("weights.num_bits=8", "weights.group_size=null", "activations.num_bits=8"),
    ),
    "w4a8, asymmetric weights in groups": (
        "qwen3",
        "w4a16",
        ("weights.group_size=16", "weights.symmetric=false", "activations.num_bits=8", "activations.symmetric=true"),
    ),
    "mixed": ("mistral", "w4a16", MIXED),
    "fused qkv": ("phi3", "w4a16", ("weights.group_size=16",)),
    "experts": ("qwen2_moe", "w4a16", ("weights.group_size=8", "refinement.steps=0")),
    "experts under other names": ("mixtral", "w4a16", ("weights.group_size=8", "refinement.steps=0")),
    "latents": ("deepseek_v3", "rtn", (*WEIGHTS_ALONE, "rotations.r1.kind=hadamard", "rotations.r2.kind=hadamard")),
    "layer norms": ("opt", "w4a16", ("weights.group_size=8", "rotations.r1.kind=none")),
    "layer norms, no bias": ("cohere2", "w4a16", ("weights.group_size=8", "rotations.r1.kind=none")),
    "scaled embedding": ("gemma3_text", "w4a16", ("weights.group_size=4", "rotations.r1.kind=none")),
}


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: t for file in sorted(folder.glob("model-*.safetensors")) for name, t in load_file(file).items()}


def check_round_trip(artifact: Path, folder: Path) -> None:
    """There and back again: every file the same, byte by byte; of a tied model every tensor."""
    export_artifact(artifact, "compressed-tensors", folder / "there")
    export_artifact(folder / "there", "native", folder / "back")
    want = {path.name: path.read_bytes() for path in artifact.iterdir()}
    have = {path.name: path.read_bytes() for path in (folder / "back").iterdir()}
    assert want.keys() == have.keys()
    changed = {name for name in want if want[name] != have[name]}
    if Artifact.open(artifact).quantization.tied_ends() is None:
        assert changed == set()
        return
    first, *_, last = sorted(name for name in want if name.startswith("model-"))
    assert changed == {"config.json", "digests.json", "model.safetensors.index.json", first, last}
    one, other = open_any_stream(artifact).source, open_any_stream(folder / "back").source
    assert one.shapes() == other.shapes()
    assert [name for name in one.shapes() if not torch.equal(one.load(name), other.load(name))] == []


@pytest.mark.parametrize("name", ["w4a16", "asymmetric", "w4a8", "online"])
def test_there_and_back(workshop: Workshop, tmp_path: Path, name: str) -> None:
    check_round_trip(workshop.of_demo(name), tmp_path)


@pytest.mark.parametrize("case", TINY)
def test_schemes_and_families(workshop: Workshop, tmp_path: Path, case: str) -> None:
    family, preset, changes = TINY[case]
    artifact = workshop.tiny(family, preset, *changes)
    check_round_trip(artifact, tmp_path)
    config = json.loads((tmp_path / "there/config.json").read_text())
    QuantizationConfig.model_validate(config["quantization_config"])
    ours = AutoModelForCausalLM.from_pretrained(artifact)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "there")
    assert not type(theirs).__name__.startswith("JointQuant")
    with torch.no_grad():
        expected, actual = ours(input_ids=INPUT_IDS).logits, theirs(input_ids=INPUT_IDS).logits
    close = torch.isclose(actual, expected, rtol=1e-3, atol=1e-3).float().mean()
    # With quantized inputs, a value on the border between two integers may round either way.
    assert close > (0.9 if "a8" in case else 0.9999)


def test_integers_are_those_of_the_artifact(workshop: Workshop, tmp_path: Path) -> None:
    """Read back by compressed-tensors' own code, not by ours."""
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

    artifact = Artifact.open(workshop.of_demo("w4a16"))
    export_artifact(artifact.folder, "compressed-tensors", tmp_path / "packed")
    stored = tensors(tmp_path / "packed")
    for module in artifact.linears:
        weight, shape = artifact.quantized_weight(module), torch.Size(stored[f"{module}.weight_shape"].tolist())
        assert torch.equal(unpack_from_int32(stored[f"{module}.weight_packed"], 4, shape), weight.codes)
        assert torch.equal(stored[f"{module}.weight_scale"], weight.scale)
    artifact = Artifact.open(workshop.of_demo("w4a8"))
    export_artifact(artifact.folder, "compressed-tensors", tmp_path / "int8")
    stored = tensors(tmp_path / "int8")
    for module in artifact.linears:
        weight = artifact.quantized_weight(module)
        assert torch.equal(stored[f"{module}.weight"], weight.codes)
        assert torch.equal(stored[f"{module}.weight_scale"], weight.scale)


@pytest.mark.parametrize("block_size", ["null", 16])
def test_the_library_applies_r4_as_we_do(workshop: Workshop, tmp_path: Path, block_size: object) -> None:
    changes = ("weights.group_size=16", "rotations.r4.kind=hadamard", f"rotations.r4.block_size={block_size}")
    native = workshop.tiny("llama", "w4a16", *changes, intermediate_size=64)
    assert export_artifact(native, "compressed-tensors", tmp_path / "a").tier == 2
    path = tmp_path / "a/config.json"
    config = json.loads(path.read_text())
    # What refuses transformers is taken off here, so that transformers loads the weights and the library adds R4.
    path.write_text(json.dumps({key: value for key, value in config.items() if key not in GUARDS}))
    transforms = TransformConfig.model_validate(config["quantization_config"]["transform_config"])
    ours = AutoModelForCausalLM.from_pretrained(native, dtype=torch.float32)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "a", dtype=torch.float32)
    with torch.no_grad():
        expected, without = ours(input_ids=INPUT_IDS).logits, theirs(input_ids=INPUT_IDS).logits
        apply_transform_config(theirs, transforms)
        actual = theirs(input_ids=INPUT_IDS).logits
    assert (without - expected).norm() > 0.1 * expected.norm(), "without R4 the model must compute something else"
    assert (actual - expected).abs().max() < 1e-3


def test_r4_that_is_no_sylvester_matrix_is_refused_with_the_block_that_fits(workshop: Workshop, tmp_path: Path) -> None:
    artifact = workshop.tiny(
        "llama", "w4a16", "weights.group_size=16", "rotations.r4.kind=hadamard", intermediate_size=48
    )
    with pytest.raises(InputError, match=r"48 = 2\^2 x 12.*`rotations.r4.block_size=16`"):
        export_artifact(artifact, "compressed-tensors", tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_a_foreign_folder_is_no_way_back(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no compressed-tensors export of jointquant"):
        export_artifact(DEMO / "model", "native", tmp_path / "a")
