"""Tests of the demo text and of the shipped demo model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

import jointquant.demo
from jointquant.demo import corpus, train

DEMO = Path(jointquant.demo.__file__).parent
MODEL = DEMO / "model"

DOCUMENTS = [f"Document {n}.\n\nIts only paragraph of any length says {n} twice: {n}." for n in range(50)]


def test_clean_leaves_no_separator() -> None:
    assert corpus.clean("\n\n\n a  \n b\n\n\n\n\nc\n\n") == " a\n b\n\nc"
    assert corpus.SEPARATOR not in corpus.clean("a\n \n\t\n\n\nb")


def test_docstrings_finds_long_ones_only() -> None:
    long = "A docstring of more than eighty characters, " * 2
    source = f'"""{long}"""\nclass A:\n    """Short."""\n    def f(self):\n        """{long} Method."""\n'
    assert list(corpus.docstrings(source)) == [long.strip(), f"{long} Method."]


def test_docstring_documents_skips_tests(tmp_path: Path) -> None:
    text = "Some words that are enough for a docstring to be long enough. " * 2
    for name in ("a.py", "test/b.py", "pkg/site-packages/c.py", "pkg/d.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'"""{name} {text}"""', encoding="utf-8")
    (tmp_path / "broken.py").write_text("def", encoding="utf-8")
    found = corpus.docstring_documents(tmp_path)
    assert [document.split()[0] for document in found] == ["a.py", "pkg/d.py"]


def test_dedupe_drops_repeated_documents_and_paragraphs() -> None:
    shared = "A paragraph that two documents share, and that is long enough to count as a repetition."
    first = f"Head.\n\n{shared}"
    second = f"Another document with a paragraph of its own that is sixty characters or longer.\n\n{shared}"
    kept = corpus.dedupe([first, second, first.upper(), shared, "Short.", "short.\n"])
    assert kept == [first, second.split("\n\n")[0], "Short."]
    assert corpus.dedupe(kept) == kept


def test_split_shares_no_document_and_loses_none() -> None:
    parts = corpus.split(DOCUMENTS, 500, seed=0)
    assert parts.heldout
    assert parts.train
    assert not set(parts.heldout) & set(parts.train)
    assert sorted(parts.heldout + parts.train) == sorted(DOCUMENTS)
    assert len(corpus.join(parts.heldout)) >= 500


def test_split_depends_on_the_seed_only() -> None:
    assert corpus.split(DOCUMENTS, 500, seed=0) == corpus.split(list(DOCUMENTS), 500, seed=0)
    assert corpus.split(DOCUMENTS, 500, seed=0) != corpus.split(DOCUMENTS, 500, seed=1)


def test_load_undoes_join() -> None:
    assert corpus.load(corpus.join(DOCUMENTS)) == DOCUMENTS


def test_python_documents_are_clean_and_distinct() -> None:
    documents = corpus.python_documents()
    assert sum(map(len, documents)) > 1_000_000
    assert len(set(documents)) == len(documents)
    assert not any(corpus.SEPARATOR in document or not document for document in documents)


def test_shipped_texts_share_no_document() -> None:
    calibration = corpus.load((DEMO / "calibration.txt").read_text(encoding="utf-8"))
    heldout = corpus.load((DEMO / "heldout.txt").read_text(encoding="utf-8"))
    assert not set(calibration) & set(heldout)
    for documents in (calibration, heldout):
        assert 150_000 <= len(corpus.join(documents)) <= 200_000
        assert corpus.dedupe(documents) == documents


def test_unigram_perplexity_of_a_uniform_text() -> None:
    ids = torch.arange(train.VOCABULARY)
    assert train.unigram_perplexity(ids, ids) == pytest.approx(train.VOCABULARY)


def test_principal_axes_keep_the_function() -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    torch.manual_seed(0)
    model = train.new_model(tokenizer).double().eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.uniform_(parameter, 0.5, 2.0)
    ids = torch.randint(train.VOCABULARY, (2 * train.WINDOW,))
    before = model(input_ids=ids[None, :64]).logits
    after = train.to_principal_axes(model, ids)(input_ids=ids[None, :64]).logits
    # RMSNorm itself computes in float32, whatever the type of the model
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(MODEL)


def test_tokenizer_round_trip_adds_nothing(tokenizer: PreTrainedTokenizerFast) -> None:
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    assert (tokenizer.bos_token, tokenizer.eos_token, len(tokenizer)) == ("<s>", "</s>", train.VOCABULARY)
    text = "def f(x):\n    return x  # \N{GREEK SMALL LETTER ALPHA} and more\n"
    ids = tokenizer(text)["input_ids"]
    assert not {tokenizer.bos_token_id, tokenizer.eos_token_id} & set(ids)
    assert tokenizer.decode(ids) == text
    assert train.encode(tokenizer, text).tolist() == ids


def test_shipped_model_has_learned(tokenizer: PreTrainedTokenizerFast) -> None:
    assert sum(path.stat().st_size for path in MODEL.rglob("*")) <= 8_000_000
    model = AutoModelForCausalLM.from_pretrained(MODEL)
    assert model.dtype == torch.bfloat16
    figures = json.loads((MODEL / "training.json").read_text(encoding="utf-8"))
    assert figures["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    calibration = train.encode(tokenizer, (DEMO / "calibration.txt").read_text(encoding="utf-8"))
    heldout = train.encode(tokenizer, (DEMO / "heldout.txt").read_text(encoding="utf-8"))
    assert len(heldout) == figures["heldout_tokens"]
    short = heldout[:8192]
    assert train.perplexity(model.float(), short) < train.unigram_perplexity(calibration, short) / 4


def test_shipped_files_name_no_paths() -> None:
    for path in MODEL.glob("*.json"):
        if path.name != "tokenizer.json":
            text = path.read_text(encoding="utf-8")
            assert not [word for word in ("_name_or_path", "/home", "/tmp") if word in text]
