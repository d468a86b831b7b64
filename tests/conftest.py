"""Small models made for the tests, and text for them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports Triton; 0 runs its tests on a GPU

import pytest
import torch
from hypothesis import settings
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

import jointquant.demo
from jointquant.models.layer import Place
from jointquant.models.registry import ARCHITECTURES
from jointquant.models.stream import ModelStream
from jointquant.progress import Silent
from jointquant.recipe.recipe import Recipe, load_recipe
from jointquant.run.fitting import assemble
from jointquant.run.job import Job
from jointquant.run.opening import Subject
from jointquant.run.workspace import Workspace
from jointquant.runtime.loading import load_tokenizer
from texts import TEXTS

settings.register_profile("repeatable", derandomize=True)  # the same examples every time: a red run is the change's
settings.register_profile("explore", derandomize=False, print_blob=True)  # others: --hypothesis-profile=explore
settings.load_profile("repeatable")

DEMO = Path(jointquant.demo.__file__).parent
SHARED = Path(__file__).parents[2] / "shared"
ASSEMBLED = (
    "cohere2",
    "deepseek_v2",
    "deepseek_v3",
    "exaone4",
    "glm",
    "glm4",
    "glm4_moe",
    "glm4_moe_lite",
    "gpt_oss",
    "granite",
    "llama4_text",
    "minimax_m2",
    "ministral3",
    "olmo2",
    "olmo3",
    "qwen3_5_moe_text",
    "qwen3_5_text",
    "qwen3_next",
    "smollm3",
    "starcoder2",
)
"""Families whose data are put together of what others have: tests/models/test_families.py goes over them, once each."""

WRAPPED = tuple(sorted(name for name, family in ARCHITECTURES.items() if family.wrapper is not None))
"""Families with a text model inside: tests/models/test_wrapper.py goes over them."""

FAMILIES = tuple(sorted(set(ARCHITECTURES) - set(ASSEMBLED) - set(WRAPPED)))
"""All others: the tests of every part go over these."""

COMMON = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 2048,
    "max_position_embeddings": 64,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e6,
    "factor": 4.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 16,
    "llama_4_scaling_beta": 0.1,
}
LOCAL_AND_GLOBAL = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "sliding_window": 8}
MOE = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 40}
HYBRID = {
    "head_dim": 16,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_value_head_dim": 12,
}
MROPE = {"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.5, "mrope_section": [2, 1, 1]}
LATENTS = {
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 40,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "n_routed_experts": 6,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "moe_intermediate_size": 40,
    "first_k_dense_replace": 1,
    "pad_token_id": 0,
}
SPECIAL: dict[str, dict[str, object]] = {
    "gemma2": LOCAL_AND_GLOBAL
    | {"head_dim": 20, "query_pre_attn_scalar": 24, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0},
    "gemma3_text": LOCAL_AND_GLOBAL | {"head_dim": 20, "query_pre_attn_scalar": 24},
    "llama": {"attention_bias": True},
    "mistral": {"sliding_window": 8},
    "opt": {"ffn_dim": 80, "intermediate_size": None, "num_key_value_heads": None},
    "phi3": {
        "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5},
        "pad_token_id": 0,
        "eos_token_id": 2,
    },
    "qwen2": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1, "tie_word_embeddings": True},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8},
    "qwen2_moe": MOE | {"shared_expert_intermediate_size": 56, "mlp_only_layers": [1], "tie_word_embeddings": True},
    "qwen3": {"head_dim": 16, "tie_word_embeddings": True},
    "cohere2": LOCAL_AND_GLOBAL
    | {"head_dim": 16, "logit_scale": 0.25, "tie_word_embeddings": True, "pad_token_id": 0, "eos_token_id": 2},
    "exaone4": LOCAL_AND_GLOBAL | {"head_dim": 16},
    "glm": {"head_dim": 16, "partial_rotary_factor": 0.5, "attention_bias": True, "pad_token_id": 0},
    "glm4": {"head_dim": 16, "partial_rotary_factor": 0.5, "attention_bias": True, "pad_token_id": 0},
    "glm4_moe": {
        "head_dim": 16,
        "attention_bias": True,
        "use_qk_norm": True,
        "n_routed_experts": 6,
        "num_experts_per_tok": 2,
        "n_group": 2,
        "topk_group": 1,
        "moe_intermediate_size": 40,
        "routed_scaling_factor": 2.5,
        "pad_token_id": 0,
    },
    "deepseek_v2": LATENTS | {"q_lora_rank": None, "n_shared_experts": 2, "topk_method": "group_limited_greedy"},
    "deepseek_v3": LATENTS | {"attention_bias": True, "rope_parameters": YARN},
    "glm4_moe_lite": LATENTS | {"rope_interleave": False},
    "gpt_oss": {
        "head_dim": 16,
        "intermediate_size": 40,
        "num_local_experts": 5,
        "num_experts_per_tok": 2,
        "sliding_window": 8,
        "swiglu_limit": 2.0,
        "pad_token_id": 0,
        "rope_parameters": {
            "rope_theta": 150000.0,
            **{k: v for k, v in YARN.items() if k.startswith(("rope_type", "factor", "beta", "orig"))},
        },
    },
    "granite": {
        "embedding_multiplier": 12.0,
        "attention_multiplier": 0.2,
        "residual_multiplier": 0.22,
        "logits_scaling": 8.0,
        "tie_word_embeddings": True,
    },
    "llama4_text": {
        "head_dim": 16,
        "intermediate_size": 40,
        "intermediate_size_mlp": 80,
        "num_local_experts": 4,
        "num_experts_per_tok": 1,
        "interleave_moe_layer_step": 2,
        "no_rope_layers": [1, 0, 1],
        "use_qk_norm": True,
        "floor_scale": 8,
        "attn_temperature_tuning": True,
        "pad_token_id": 0,
    },
    "minimax_m2": {
        "head_dim": 16,
        "rotary_dim": 8,
        "num_local_experts": 5,
        "num_experts_per_tok": 2,
        "intermediate_size": 40,
    },
    "ministral3": {
        "head_dim": 16,
        "rope_parameters": YARN,
    },
    "olmo2": {"num_key_value_heads": 4, "pad_token_id": 1},
    "olmo3": LOCAL_AND_GLOBAL | {"pad_token_id": 1},
    "smollm3": {"no_rope_layer_interval": 2, "tie_word_embeddings": True, "pad_token_id": 4},
    "starcoder2": {"sliding_window": 8, "hidden_act": "gelu_pytorch_tanh", "tie_word_embeddings": True},
    "qwen3_5_text": HYBRID | {"rope_parameters": MROPE | {"mrope_interleaved": True}},
    "qwen3_5_moe_text": HYBRID
    | MOE
    | {"rope_parameters": MROPE, "shared_expert_intermediate_size": 56, "tie_word_embeddings": True},
    "qwen3_next": HYBRID
    | MOE
    | {
        "norm_topk_prob": True,
        "partial_rotary_factor": 0.25,
        "shared_expert_intermediate_size": 56,
        "mlp_only_layers": [2],
    },
    "qwen3_moe": MOE | {"head_dim": 16, "norm_topk_prob": True, "decoder_sparse_step": 2},
}
WITHOUT_R1 = tuple(family for family in FAMILIES if ARCHITECTURES[family].writer_norms)
MIXTURES = tuple(family for family in FAMILIES if ARCHITECTURES[family].mixture is not None)


def possible(family: str, *changes: str) -> list[str]:
    """``changes`` of a recipe, with R1 and R2 off where the family allows none."""
    architecture = ARCHITECTURES[family]
    r1 = ["rotations.r1.kind=none"] if architecture.writer_norms else []
    r2 = ["rotations.r2.kind=none"] if architecture.gated_values else []
    return [*changes, *r1, *r2]


def make_model(family: str, dtype: torch.dtype = torch.float32, seed: int = 0, **changes: object) -> PreTrainedModel:
    """A tiny model with random weights, norms and biases included."""
    generator = torch.Generator().manual_seed(seed)
    settings = COMMON | SPECIAL[family] | changes  # None: a common setting that this family does not have
    given = {key: value for key, value in settings.items() if value is not None or key not in COMMON}
    config = AutoConfig.for_model(family, **given)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).to(dtype).eval()
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        if parameter.ndim == 1 and name.endswith("norm.weight"):
            parameter.data = (1 + 0.3 * noise).to(dtype)
        else:
            parameter.data = (noise / 5).to(dtype)
    for name, buffer in model.named_buffers():
        if name.endswith("correction_bias"):
            buffer.copy_(torch.randn(buffer.shape, generator=generator, dtype=torch.float64) / 5)
    return model


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer(DEMO / "model")


@pytest.fixture(scope="session")
def calibration_text() -> str:
    return str(TEXTS / "calibration.txt")


@pytest.fixture
def save_model(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> Callable[..., Path]:
    """Write a tiny model and its tokenizer to a folder."""

    def save(family: str = "llama", max_shard_size: str = "5GB", **options: object) -> Path:
        folder = tmp_path / f"{family}-{max_shard_size}"
        make_model(family, **options).save_pretrained(folder, max_shard_size=max_shard_size)  # type: ignore[arg-type]
        tokenizer.save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real models and text that do not belong to the project."""
    if not SHARED.is_dir():
        pytest.skip(f"real models and texts are not at {SHARED.name}/ beside this checkout")
    return SHARED


def small(*changes: str, text: str = str(TEXTS / "calibration.txt"), seed: int = 0) -> list[str]:
    """Recipe changes for a quick run: four windows of 32 tokens."""
    return [
        f"calibration.source={text}",
        "calibration.num_samples=4",
        "calibration.seqlen=32",
        f"calibration.seed={seed}",
        *changes,
    ]


def few_steps(preset: str) -> list[str]:
    """Recipe changes for a quick run of a preset: two steps for whatever it learns."""
    recipe = load_recipe(preset)
    learned = [name for name in ("r1", "r2", "r3", "r4") if getattr(recipe.rotations, name).kind == "learned"]
    refined = ["refinement.steps=2", "refinement.rounds=0"] if recipe.refinement.enabled else []
    return [*(f"rotations.{name}.steps=2" for name in learned), *refined]


def make_job(stream: ModelStream, recipe: Recipe, windows: torch.Tensor, place: Place, artifact: Path = DEMO) -> Job:
    """A job without a journal, on windows [n, T]; ``artifact`` is the folder that pass 2 would fill."""
    subject = Subject(DEMO / "model", None, stream, load_tokenizer(DEMO / "model"), place)
    assembly = assemble(stream.skeleton, stream.architecture, recipe)
    return Job(subject, assembly, windows, Workspace(place), artifact, Silent())


@torch.no_grad()
def token_by_token(model: PreTrainedModel, input_ids: torch.Tensor) -> torch.Tensor:
    """Logits [batch, tokens, vocabulary] of a model that reads one token at a time through its cache."""
    cache, steps = None, []
    for position in range(input_ids.shape[1]):
        output = model(input_ids=input_ids[:, position : position + 1], past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        steps.append(output.logits)
    return torch.cat(steps, dim=1)
