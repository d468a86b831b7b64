"""What is particular to single families, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

import jointquant
from conftest import WITHOUT_R1, make_model, possible, small
from jointquant.errors import InputError
from jointquant.models.layer import Place
from jointquant.models.stream import open_stream

ALL = [f"rotations.{r}.kind=hadamard" for r in ("r1", "r2", "r3", "r4")]
PLACE = Place(torch.device("cpu"), torch.float32)
INPUT_IDS = torch.randint(0, 2048, (2, 24), generator=torch.Generator().manual_seed(4))


def logits(model: PreTrainedModel, **more: Tensor) -> Tensor:
    with torch.no_grad():
        return model(input_ids=INPUT_IDS, **more).logits


def rotated(model: PreTrainedModel, family: str, folder: Path, tokenizer, *changes: str) -> PreTrainedModel:
    """The artifact with all rotations that are possible, at 16 bits, loaded."""
    recipe = jointquant.load_recipe("fp16", small(*possible(family, *ALL), "calibration.seqlen=16", *changes))
    jointquant.quantize(model, folder, recipe, tokenizer=tokenizer)
    return AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("family", WITHOUT_R1)
@pytest.mark.parametrize("kind", ["hadamard", "learned"])
def test_r1_is_refused_where_no_rotation_passes(family: str, kind: str, tmp_path: Path, tokenizer) -> None:
    recipe = jointquant.load_recipe("fp16", small(f"rotations.r1.kind={kind}"))
    with pytest.raises(InputError, match=rf"r1 is {kind}: {family} .*`rotations\.r1\.kind=none`"):
        jointquant.quantize(make_model(family), tmp_path / "a", recipe, tokenizer=tokenizer)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("family", WITHOUT_R1)
def test_r1_would_change_the_function(family: str, tmp_path: Path, tokenizer, monkeypatch) -> None:
    """The refusal is right: with R1 merged all the same, the function is another."""
    model = make_model(family)
    monkeypatch.setattr("jointquant.runtime.checks.check_r1", lambda *_: None)
    recipe = jointquant.load_recipe("fp16", small("rotations.r1.kind=hadamard"))
    jointquant.quantize(model, tmp_path / "a", recipe, tokenizer=tokenizer)
    error = (logits(AutoModelForCausalLM.from_pretrained(tmp_path / "a")) - logits(model)).abs().max()
    assert error > 1e-2


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("opt", {"do_layer_norm_before": False}, "do_layer_norm_before is False .*expected True"),
        ("opt", {"_remove_final_layer_norm": True}, "_remove_final_layer_norm is True .*expected False"),
        ("opt", {"word_embed_proj_dim": 24}, "word_embed_proj_dim is 24 .*expected 48"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True .*expected False"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        ("opt", {"num_key_value_heads": 2}, "v_proj has 48 outputs: 4 heads and 2 KV heads of size 12"),
    ],
)
def test_variants_are_refused(family: str, changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        open_stream(make_model(family, **changes))
    assert "\n" not in str(raised.value)


def test_code_beside_the_base_model_is_not_named(tmp_path: Path, tokenizer) -> None:
    """Phi 3 comes with its own modelling code; the artifact runs transformers' and must not ask for the other."""
    model = make_model("phi3")
    model.config.auto_map = {"AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"}
    loaded = rotated(model, "phi3", tmp_path / "a", tokenizer)
    assert "auto_map" not in (tmp_path / "a" / "config.json").read_text()
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-4, atol=2e-4)
