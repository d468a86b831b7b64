"""Small models made for the tests, and text for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

import jointquant.demo
from jointquant.runtime.loading import load_tokenizer

DEMO = Path(jointquant.demo.__file__).parent
SHARED = Path(__file__).parents[2] / "shared"
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")

COMMON = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 2048,
    "max_position_embeddings": 64,
}
SPECIAL: dict[str, dict[str, object]] = {
    "llama": {"attention_bias": True},
    "mistral": {"sliding_window": 8},
    "qwen2": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1, "tie_word_embeddings": True},
    "qwen3": {"head_dim": 16, "tie_word_embeddings": True},
}


def make_model(family: str, dtype: torch.dtype = torch.float32, seed: int = 0, **changes: object) -> PreTrainedModel:
    """A tiny model with random weights, norms and biases included."""
    generator = torch.Generator().manual_seed(seed)
    config = AutoConfig.for_model(family, **(COMMON | SPECIAL[family] | changes))
    model = AutoModelForCausalLM.from_config(config).to(dtype).eval()
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        if parameter.ndim == 1 and "norm" in name:
            parameter.data = (1 + 0.3 * noise).to(dtype)
        else:
            parameter.data = (noise / 5).to(dtype)
    return model


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer(DEMO / "model")


@pytest.fixture(scope="session")
def calibration_text() -> str:
    return str(DEMO / "calibration.txt")


@pytest.fixture
def save_model(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> Callable[..., Path]:
    """Write a tiny model and its tokenizer to a folder."""

    def save(family: str = "llama", max_shard_size: str = "5GB", **options: object) -> Path:
        folder = tmp_path / f"{family}-{max_shard_size}"
        make_model(family, **options).save_pretrained(folder, max_shard_size=max_shard_size)  # type: ignore[arg-type]
        tokenizer.save_pretrained(folder)
        return folder

    return save


@pytest.fixture
def shared() -> Path:
    """Real models and text that do not belong to the project."""
    if not SHARED.is_dir():
        pytest.skip(f"real models and texts are not at {SHARED.name}/ beside this checkout")
    return SHARED


def small(*changes: str, text: str = str(DEMO / "calibration.txt"), seed: int = 0) -> list[str]:
    """Recipe changes for a quick run: four windows of 32 tokens."""
    return [
        f"calibration.source={text}",
        "calibration.num_samples=4",
        "calibration.seqlen=32",
        f"calibration.seed={seed}",
        *changes,
    ]
