"""The model card: what it names, what it measured, and how exports take it over."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard

from conftest import DEMO, few_steps, make_model, small
from jointquant import InputError, export_artifact, load_recipe, quantize
from jointquant.artifact.card import CARD_NAME, check_carded, read_measured, record_perplexity
from jointquant.runtime.loading import load_tokenizer
from texts import TEXTS


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """To be read only."""
    out = tmp_path_factory.mktemp("sound") / "a"
    recipe = load_recipe("w4a16", small(*few_steps("w4a16"), "weights.group_size=16"))
    quantize(make_model("llama"), out, recipe, tokenizer=load_tokenizer(DEMO / "model"))
    return out


@pytest.fixture
def artifact(sound: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return Path(shutil.copytree(sound, tmp_path / "a"))


def test_a_card_names_what_made_it(artifact: Path) -> None:
    card = ModelCard.load(artifact / CARD_NAME)
    assert card.data.pipeline_tag == "text-generation"
    for words in (
        "4 bits, symmetric, groups of 16",
        "hadamard, Hadamard 48",
        "calibration.txt",
        "4 windows of 32 tokens",
        "Tier 1",
        "import jointquant",
        "Not measured",
        "transformers 5.",
    ):
        assert words in card.text, words
    assert str(TEXTS) not in card.text


def test_perplexities_are_kept_and_replaced(artifact: Path) -> None:
    record_perplexity(artifact, {"/home/me/mine.txt": 12.5, "wikitext2": 9.25}, 128)
    record_perplexity(artifact, {"wikitext2": 9.5}, 128)
    record_perplexity(artifact, {"wikitext2": 8.5}, 256)
    found = [(row.text, row.seqlen, row.perplexity) for row in read_measured(artifact)]
    assert found == [("mine.txt", 128, 12.5), ("wikitext2", 128, 9.5), ("wikitext2", 256, 8.5)]
    text = (artifact / CARD_NAME).read_text(encoding="utf-8")
    assert "| wikitext2 | 256 tokens | 8.5000 |" in text
    assert "Not measured" not in text


def test_exports_that_compute_the_same_take_them_over(artifact: Path, tmp_path: Path) -> None:
    make_model("llama").save_pretrained(tmp_path / "base")
    record_perplexity(artifact, {"wikitext2": 9.5}, 128)
    export_artifact(artifact, "compressed-tensors", tmp_path / "ct")
    export_artifact(artifact, "dense", tmp_path / "dense", dequantized=True)
    export_artifact(artifact, "dense", tmp_path / "rotated", base=tmp_path / "base")
    assert read_measured(tmp_path / "ct") == read_measured(tmp_path / "dense") == read_measured(artifact)
    assert read_measured(tmp_path / "rotated") == []
    cards = {name: (tmp_path / name / CARD_NAME).read_text(encoding="utf-8") for name in ("ct", "dense", "rotated")}
    assert "vllm serve" in cards["ct"]
    assert "jointquant is not needed" in cards["dense"]
    assert "rotated, not rounded" in cards["rotated"]
    record_perplexity(tmp_path / "rotated", {"wikitext2": 7.5}, 128)
    assert "rotated, not rounded" in (tmp_path / "rotated" / CARD_NAME).read_text(encoding="utf-8")


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_an_export_that_is_rounded_once_more_takes_none_over(stored: torch.dtype, tmp_path: Path) -> None:
    recipe, model = (
        load_recipe("w4a16", small(*few_steps("w4a16"), "weights.group_size=16")),
        make_model("llama").to(stored),
    )
    quantize(model, tmp_path / "a", recipe, tokenizer=load_tokenizer(DEMO / "model"))
    record_perplexity(tmp_path / "a", {"wikitext2": 9.5}, 128)
    for dtype, count in (("bfloat16", 0), ("float32", 1)):
        export_artifact(tmp_path / "a", "dense", tmp_path / dtype, dequantized=True, dtype=dtype)
        assert len(read_measured(tmp_path / dtype)) == count


def test_texts_that_a_card_cannot_tell_apart(artifact: Path) -> None:
    check_carded(artifact, ("/a/x.txt", "/b/y.txt", "wikitext2"))
    with pytest.raises(InputError, match=r"two texts are called x\.txt"):
        check_carded(artifact, ("/a/x.txt", "/b/x.txt"))


def test_what_is_no_card_is_said(artifact: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no artifact and no export of one"):
        record_perplexity(DEMO / "model", {"wikitext2": 9.5}, 128)
    (artifact / CARD_NAME).write_text("---\nmodel-index: [1\n---\n", encoding="utf-8")
    with pytest.raises(InputError, match="has no readable front matter"):
        record_perplexity(artifact, {"wikitext2": 9.5}, 128)
    (artifact / CARD_NAME).unlink()
    path = artifact / "config.json"
    config = json.loads(path.read_text())
    del config["quantization_config"]["tier"]
    path.write_text(json.dumps(config))
    with pytest.raises(InputError, match="does not say its tier"):
        record_perplexity(artifact, {"wikitext2": 9.5}, 128)
