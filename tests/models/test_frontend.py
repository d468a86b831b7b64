"""What lies before the first layer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

import jointquant
from conftest import FAMILIES, make_model, possible, small
from jointquant.models.layer import Place, run_layer
from jointquant.models.stream import open_stream
from jointquant.models.transforms import fuse_norms

PLACE = Place(torch.device("cpu"), torch.float32)
INPUT_IDS = torch.randint(0, 2048, (2, 24), generator=torch.Generator().manual_seed(4))
ALL = [f"rotations.{r}.kind=hadamard" for r in ("r1", "r2", "r3", "r4")]
ORIGINAL = {"original_max_position_embeddings": 16}
SCALED = {"rope_theta": 10000.0, "factor": 4.0}
LLAMA_3 = ORIGINAL | SCALED | {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LONG = ORIGINAL | {"rope_type": "longrope", "short_factor": [1.0] * 6, "long_factor": [2.0] * 6}
# Inputs are 24 tokens long: longer than the 16 positions up to which ``dynamic`` and ``longrope`` change nothing.
POSITIONS: dict[str, tuple[str, dict[str, object]]] = {
    "default": ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}),
    "linear": ("llama", {"rope_parameters": SCALED | {"rope_type": "linear"}}),
    "dynamic": ("llama", {"rope_parameters": SCALED | {"rope_type": "dynamic"}, "max_position_embeddings": 16}),
    "llama3": ("llama", {"rope_parameters": LLAMA_3, "tie_word_embeddings": True}),
    "yarn": ("llama", {"rope_parameters": ORIGINAL | SCALED | {"rope_type": "yarn"}}),
    "longrope": ("phi3", {"rope_parameters": LONG | {"rope_theta": 10000.0}} | ORIGINAL),
}


def logits(model: PreTrainedModel, **more: Tensor) -> Tensor:
    with torch.no_grad():
        return model(input_ids=INPUT_IDS, **more).logits


def rotated(model: PreTrainedModel, family: str, folder: Path, tokenizer, *changes: str) -> PreTrainedModel:
    """The artifact with all rotations that are possible, at 16 bits, loaded."""
    recipe = jointquant.load_recipe("fp16", small(*possible(family, *ALL), "calibration.seqlen=16", *changes))
    jointquant.quantize(model, folder, recipe, tokenizer=tokenizer)
    return AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("rope", POSITIONS)
def test_rotary_embeddings_of_every_kind(rope: str, tmp_path: Path, tokenizer) -> None:
    family, changes = POSITIONS[rope]
    model = make_model(family, **changes)
    loaded = rotated(model, family, tmp_path / "a", tokenizer)
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("rope", [rope for rope in POSITIONS if rope != "default"])
def test_the_scaling_matters_at_this_length(rope: str) -> None:
    """What the test above compares would differ without the scaling."""
    family, changes = POSITIONS[rope]
    unscaled = POSITIONS["default"][1] | {"tie_word_embeddings": bool(changes.get("tie_word_embeddings"))}
    error = (logits(make_model(family, **changes)) - logits(make_model(family, **unscaled))).abs().max()
    assert error > 1e-2


@pytest.mark.parametrize("family", FAMILIES)
def test_padded_windows(family: str, tmp_path: Path, tokenizer) -> None:
    """With padding on the left, where masks and learned positions depend on the attention mask."""
    model = make_model(family)
    loaded = rotated(model, family, tmp_path / "a", tokenizer)
    mask = torch.ones_like(INPUT_IDS)
    mask[0, :5] = 0
    actual, expected = logits(loaded, attention_mask=mask), logits(model, attention_mask=mask)
    torch.testing.assert_close(actual[mask == 1], expected[mask == 1], rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("rope", POSITIONS)
def test_the_stream_takes_positions_from_the_model(rope: str) -> None:
    family, changes = POSITIONS[rope]
    model = make_model(family, **changes)
    with torch.no_grad():
        expected = model(input_ids=INPUT_IDS, output_hidden_states=True).hidden_states
    stream = open_stream(model)
    frontend = stream.frontend(PLACE)
    arguments = frontend.layer_arguments(INPUT_IDS)
    hidden_states = frontend.hidden_states(INPUT_IDS)
    for index in range(stream.num_layers):
        torch.testing.assert_close(hidden_states, expected[index], rtol=1e-4, atol=1e-4)
        layer = stream.layer(index, PLACE)
        fuse_norms(layer, stream.architecture)
        with torch.no_grad():
            hidden_states = run_layer(layer, hidden_states, arguments[index])
