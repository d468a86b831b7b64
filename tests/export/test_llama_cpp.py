"""GGUF files run by the real llama.cpp: tokens, logits, perplexity; skipped where llama-cpp-python is missing."""

from __future__ import annotations

import copy
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

import jointquant
from conftest import DEMO, make_model, possible, small
from export.artifacts import Workshop
from jointquant import export_artifact
from jointquant.export import gguf_families
from jointquant.models.registry import ARCHITECTURES
from jointquant.models.source import Checkpoint
from jointquant.models.support import GGUF_FAMILIES
from jointquant.runtime.loading import PROBE, load_tokenizer
from jointquant.runtime.tied_ends import NORM_WEIGHT, SHARED_WEIGHT

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: pip install 'jointquant[gguf-test]'")
from export.llama import Llama, quantize_file

QUIET = ("rotations.r1.kind=hadamard", "rotations.r2.kind=hadamard")
BRIEF = ("rotations.r1.steps=20", "rotations.r2.steps=20", "calibration.num_samples=16", "calibration.seqlen=128")
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.5,
    "long_factor": [1.5, 2.0, 4.0],
    "short_factor": [1.0, 1.1, 1.2],
}
NO_WINDOWS = {"layer_types": ["full_attention"] * 3, "sliding_window": None}
FAMILIES: dict[str, dict[str, object]] = {
    "exaone4": {"head_dim": 12},
    "exaone4, scaled positions": {"head_dim": 12, "rope_parameters": LLAMA3},
    "gemma2": {"query_pre_attn_scalar": 20},
    "gemma3_text": {"query_pre_attn_scalar": 20},
    "glm": {"head_dim": 12},
    "glm4": {},
    "granite": {},
    "llama": {},
    "llama, scaled positions": {"rope_parameters": LLAMA3},
    "llama, tied": {"tie_word_embeddings": True, "attention_bias": False},
    "mistral": {"sliding_window": None},
    "mixtral": {"sliding_window": None},
    "olmo2": {},
    "phi3": {},
    "phi3, long context": {"rope_parameters": LONG, "original_max_position_embeddings": 16},
    "phi3, short context": {
        "rope_parameters": LONG,
        "original_max_position_embeddings": 300,  # llama.cpp makes room for 256 tokens at least
        "max_position_embeddings": 600,
    },
    "qwen2": {"use_sliding_window": False},
    "qwen2_moe": {"mlp_only_layers": []},
    "qwen3": {},
    "qwen3_moe": {"decoder_sparse_step": 1},
    "smollm3": {"no_rope_layer_interval": 4, "num_hidden_layers": 4},
}


def test_every_family_is_run() -> None:
    assert {case.partition(",")[0] for case in FAMILIES} == set(gguf_families.FAMILIES) == set(GGUF_FAMILIES)


@pytest.mark.parametrize("case", FAMILIES)
def test_families(workshop: Workshop, tmp_path: Path, case: str) -> None:
    """Biases, norms, the order of rotary pairs, stretched positions, tied heads, experts, windows, factors, caps."""
    family = case.partition(",")[0]
    model = make_model(family, **FAMILIES[case])  # type: ignore[arg-type]
    if family == "exaone4":  # by default it has windows
        model = like(model, NO_WINDOWS)
    recipe = jointquant.load_recipe("fp16", small(*possible(family, "rotations.r1.kind=hadamard")))
    jointquant.quantize(model, tmp_path / "a", recipe, tokenizer=load_tokenizer(DEMO / "model"))
    export_artifact(tmp_path / "a", "gguf", tmp_path / "a.gguf")
    ids = torch.randint(0, 2048, (48,), generator=torch.Generator().manual_seed(3))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    with torch.no_grad():
        expected = model(input_ids=ids[None]).logits[0]
    with Llama(tmp_path / "a.gguf", 48) as llama:
        actual = llama.logits(ids.tolist())
    off = (actual - expected).norm(dim=-1) / expected.norm(dim=-1)
    if ARCHITECTURES[family].mixture is None:
        assert (actual - expected).norm() < 5e-3 * expected.norm(), "weights are in float16 there"
    assert off.median() < 5e-3, "a token between two experts may go the other way"


def like(model: PreTrainedModel, changes: dict[str, object]) -> PreTrainedModel:
    """A model with the same weights and some settings changed, to None too."""
    config = copy.deepcopy(model.config)
    for key, value in changes.items():
        setattr(config, key, value)
    changed = AutoModelForCausalLM.from_config(config)
    changed.load_state_dict(model.state_dict())
    return changed.eval()


@dataclass(frozen=True)
class Case:
    """A real model, its texts, and what its sizes ask of the recipe."""

    model: Path
    calibration: Path
    text: Path
    changes: tuple[str, ...] = ()


def case_of(name: str, shared: Path | None) -> Case:
    if name == "embedded":
        return Case(DEMO / "model", DEMO / "calibration.txt", DEMO / "heldout.txt")
    assert shared is not None
    text = shared / "data/tinystories-sample.txt"
    # Rows of 172 have no whole blocks; llama.cpp leaves them in float16, too.
    plain = "weights: {num_bits: 16, group_size: null}, activations: {num_bits: 16, strategy: token, group_size: null}"
    change = f'overrides=[{{modules: "*.down_proj", {plain}}}]'
    return Case(shared / "models/stories260k", text, text, (change,))


@pytest.mark.parametrize("name", ["embedded", "stories260k"])
def test_perplexity(tmp_path: Path, name: str, request: pytest.FixtureRequest) -> None:
    """Within 2% of our own evaluation with 8-bit activations, and below llama.cpp's own Q4_0 of the unrotated model."""
    case = case_of(name, request.getfixturevalue("shared") if name != "embedded" else None)
    changes = [*small(text=str(case.calibration)), *BRIEF, *case.changes]
    jointquant.quantize(case.model, tmp_path / "ours", jointquant.load_recipe("gguf", changes))
    export_artifact(tmp_path / "ours", "gguf", tmp_path / "ours.gguf")
    original = unrotated(case.model, tmp_path, changes)
    text = case.text.read_text(encoding="utf-8")[-80_000:]
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    tokenizer = load_tokenizer(case.model)
    ids = tokenizer(text).input_ids
    windows = torch.tensor(ids[: 16 * 128]).view(16, 128)
    with Llama(tmp_path / "ours.gguf", 128) as llama:
        ours = llama.perplexity(windows)
        assert llama.tokenize(text) == ids
        assert llama.tokenize(PROBE) == tokenizer(PROBE).input_ids
    source = str(tmp_path / "text.txt")
    here = jointquant.evaluate(tmp_path / "ours", (source,), seqlen=128, max_tokens=16 * 128, dtype="float32")
    assert ours == pytest.approx(here.perplexity[source], rel=0.02)
    for keep_ends in (False, True):
        quantize_file(original, tmp_path / "theirs.gguf", keep_ends)
        with Llama(tmp_path / "theirs.gguf", 128) as llama:
            assert ours < llama.perplexity(windows)


def unrotated(model: Path, folder: Path, changes: list[str]) -> Path:
    """The base model itself as GGUF, its norms not fused: what llama.cpp's users quantize."""
    recipe = jointquant.load_recipe("fp16", [change for change in changes if change.startswith("calibration")])
    jointquant.quantize(model, folder / "plain", jointquant.load_recipe(recipe, ["calibration.num_samples=1"]))
    source = Checkpoint(model)
    for shard in (folder / "plain").glob("model-*.safetensors"):
        tensors = {name: original_of(name, kept, source) for name, kept in load_file(shard).items()}
        save_file(tensors, shard, metadata={"format": "pt"})
    export_artifact(folder / "plain", "gguf", folder / "plain.gguf", digests="ignore")
    shutil.rmtree(folder / "plain")
    return folder / "plain.gguf"


def original_of(name: str, kept: Tensor, source: Checkpoint) -> Tensor:
    """What the base model has where an artifact has ``kept``; a gain that would go into the head is one."""
    module, _, own = name.rpartition(".")
    if own == NORM_WEIGHT:
        return torch.ones_like(kept)
    return source.load(f"{module}.weight" if own == SHARED_WEIGHT else name).clone()


def test_a_quantized_head_and_embedding(workshop: Workshop, tmp_path: Path) -> None:
    """Q8_0 for both ends, Q4_0 for the rest, on a family of each order of rotary pairs."""
    ends = "num_bits=8", "group_size=32", "scale_dtype=float16", "method=rtn"
    changes = [f"head.{change}" for change in ends] + [f"embeddings.{change}" for change in ends[:3]]
    for family in ("llama", "qwen3"):
        sizes = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
        artifact = workshop.tiny(family, "gguf", *changes, *QUIET, **sizes)
        export_artifact(artifact, "gguf", tmp_path / f"{family}.gguf")
        ids = list(range(100, 140))
        model = AutoModelForCausalLM.from_pretrained(artifact)
        with torch.no_grad():
            expected = model(input_ids=torch.tensor([ids])).logits[0]
        with Llama(tmp_path / f"{family}.gguf", 40) as llama:
            actual = llama.logits(ids)
        # llama.cpp also quantizes the inputs of the head to 8 bits, and some values round the other way.
        assert (actual - expected).norm() < 0.1 * expected.norm()


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_asymmetric_weights(workshop: Workshop, tmp_path: Path, family: str) -> None:
    """Q4_1, also in experts: closer to what its artifact computes than another rounding of the same model is."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
    sizes |= {"moe_intermediate_size": 32, "decoder_sparse_step": 1} if family == "qwen3_moe" else {}
    quick = (*QUIET, "weights.method=rtn")
    artifact = workshop.tiny(family, "gguf", *quick, "weights.symmetric=false", **sizes)
    symmetric = workshop.tiny(family, "gguf", *quick, **sizes)
    export_artifact(artifact, "gguf", tmp_path / "a.gguf")
    ids = list(range(100, 140))
    with torch.no_grad():
        expected, other = (
            AutoModelForCausalLM.from_pretrained(each)(input_ids=torch.tensor([ids])).logits[0]
            for each in (artifact, symmetric)
        )
    with Llama(tmp_path / "a.gguf", 40) as llama:
        actual = llama.logits(ids)
    off = ((actual - expected).norm(dim=-1) / expected.norm(dim=-1)).median()
    apart = ((other - expected).norm(dim=-1) / expected.norm(dim=-1)).median()
    assert off < 0.1
    assert off < apart / 3
