"""Rotary embeddings whose frequencies depend on the length of a text pass the rehearsal, from a folder too."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import jointquant
from conftest import make_model, possible, small
from jointquant.errors import InputError
from jointquant.models.rehearsal import rehearse
from jointquant.models.stream import open_stream
from texts import TEXTS

SCALED = {"rope_theta": 10000.0, "factor": 4.0}
SHORT = {"original_max_position_embeddings": 16}
LONG = SHORT | {"rope_type": "longrope", "short_factor": [1.0] * 6, "long_factor": [2.0] * 6, "rope_theta": 10000.0}
LOCAL = {"rope_type": "default", "rope_theta": 10000.0}
KINDS: dict[str, tuple[str, dict[str, object]]] = {
    "dynamic": ("llama", {"rope_parameters": SCALED | {"rope_type": "dynamic"}}),
    "dynamic in some layers": (
        "gemma3_text",
        {"rope_parameters": {"full_attention": SCALED | {"rope_type": "dynamic"}, "sliding_attention": LOCAL}},
    ),
    "longrope": ("phi3", {"rope_parameters": LONG} | SHORT),
}


@pytest.mark.parametrize("kind", KINDS)
def test_frequencies_that_depend_on_the_text(kind: str, save_model, tmp_path: Path) -> None:
    family, changes = KINDS[kind]
    folder = save_model(family, **changes)
    recipe = jointquant.load_recipe("fp16", small(*possible(family)))
    jointquant.quantize(folder, tmp_path / "out", recipe)
    ids = torch.randint(0, 2048, (1, 16), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours, theirs = (AutoModelForCausalLM.from_pretrained(f)(ids).logits for f in (tmp_path / "out", folder))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    text = str(TEXTS / "heldout.txt")
    assert jointquant.evaluate(folder, (text,), seqlen=16, max_tokens=64).perplexity[text] > 1


def test_the_rehearsal_leaves_the_model_as_it_is_and_refuses_still() -> None:
    stream = open_stream(make_model("llama", rope_parameters=SCALED | {"rope_type": "dynamic"}))
    rehearse(stream.skeleton, stream.architecture)
    assert stream.skeleton.model.rotary_emb.rope_type == "dynamic"
    stream.skeleton.model.layers[0].mlp.up_proj = torch.nn.Linear(3, 3, device="meta")
    with pytest.raises(InputError, match="the model cannot run as its configuration says"):
        rehearse(stream.skeleton, stream.architecture)
