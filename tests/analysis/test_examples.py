"""What a comparison shows besides its figures: what models write, and which parts lose."""

from __future__ import annotations

from pathlib import Path

import pytest

import jointquant
from conftest import make_model, small
from jointquant.analysis.examples import Besides
from jointquant.errors import InputError
from jointquant.evaluation.parts import NOTHING
from texts import TEXTS

TEXT, PROMPT = str(TEXTS / "heldout.txt"), "The module provides"
OPTIONS = {"texts": (TEXT,), "eval_seqlen": 32, "max_tokens": 96, "changes": small()}


def test_prompts_and_parts_of_a_model_of_a_folder(tmp_path: Path, tokenizer) -> None:
    make_model("llama").save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    weights = ("activations.num_bits=16", "kv_cache.num_bits=16")
    recipes = {"rtn": jointquant.load_recipe("rtn"), "w4a16": jointquant.load_recipe("rtn", weights)}
    asked = {"prompts": (PROMPT,), "max_new_tokens": 20, "diagnose": True, "keep_artifacts": True}
    out = tmp_path / "out"
    result = jointquant.compare(tmp_path / "model", recipes, out, **OPTIONS, **asked)  # type: ignore[arg-type]
    assert (result.about["prompts"], result.about["max_new_tokens"]) == ([PROMPT], 20)
    artifact = out / "artifacts" / "rtn-seed0"
    for holder, subject in ((result.reference, tmp_path / "model"), (result.details["rtn"], artifact)):
        said = jointquant.generate_text(subject, PROMPT, 20).to_dict()
        assert holder["generations"] == [{key: said[key] for key in ("text", "new_tokens", "ended", "loops")}]
    parts = result.details["rtn"]["parts"]
    assert parts["divergence"]["all inputs, keys and values"] < parts["divergence"][NOTHING]
    assert parts["divergence"][NOTHING] == pytest.approx(result.rows[0]["divergence"][TEXT], rel=1e-3)
    assert "quantizes weights alone" in result.details["w4a16"]["parts"]["refused"]
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "Where the loss is" in page
    assert f"<blockquote>{PROMPT}</blockquote>" in page


def test_what_cannot_be_shown_is_refused_before_anything_is_quantized(tmp_path: Path, tokenizer) -> None:
    def refused(message: str, **asked: object) -> None:
        with pytest.raises(InputError, match=message):
            jointquant.compare(make_model("llama"), ("rtn",), tmp_path / "out", tokenizer=tokenizer, **OPTIONS, **asked)  # type: ignore[arg-type]
        assert not (tmp_path / "out").exists()

    refused("`diagnose` reads the model from its folder", diagnose=True)
    refused("more than the model's", prompts=("word " * 1000,))
    refused("`max_new_tokens` is 0: expected at least 1", prompts=(PROMPT,), max_new_tokens=0)


def test_a_model_in_memory_is_asked_and_stays_as_it_was(tmp_path: Path, tokenizer) -> None:
    model = make_model("llama")
    before = model.generation_config
    asked = {"tokenizer": tokenizer, "prompts": (PROMPT,)}
    result = jointquant.compare(model, ("fp16",), tmp_path / "out", **OPTIONS, **asked)  # type: ignore[arg-type]
    assert model.generation_config is before
    assert result.details["fp16"]["generations"] == result.reference["generations"]
    assert result.details["fp16"]["parts"] == {}


def test_a_comparison_depends_on_what_is_written_only_where_it_is() -> None:
    assert Besides((), 48, True).identity() == Besides((), 512, True).identity()
    assert Besides((PROMPT,), 48).identity() != Besides((PROMPT,), 512).identity()
    assert Besides().identity() == {}
