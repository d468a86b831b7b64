"""A model folder is read as transformers reads it, whatever its layout: the same logits from all ways to open it."""

from __future__ import annotations

import json
import logging
import math
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import jointquant
from conftest import make_model, possible, small
from hostile.damage import INDEX, SINGLE, both, config, edit_json, pickle_of, remove, shards, tensors, to_pickle, write
from jointquant.evaluation.runners import Streamed, runner_of
from jointquant.models import contents
from jointquant.models.options import completed
from jointquant.models.stream import open_stream
from jointquant.progress import Silent
from jointquant.runtime.loading import load, load_tokenizer
from texts import TEXTS

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
IDS = torch.randint(0, 2048, (2, 16), generator=torch.Generator().manual_seed(1))
TEXT = str(TEXTS / "heldout.txt")
Layout = Callable[[Path], object]


def renamed(name: Callable[[str], str]) -> Layout:
    """Every tensor under another name."""

    def change(folder: Path) -> None:
        save_file({name(key): value for key, value in load_file(folder / SINGLE).items()}, folder / SINGLE)

    return change


def other(name: str) -> Layout:
    """A file of other weights beside the right ones."""

    def change(folder: Path) -> None:
        save_file({key: value + 1 for key, value in load_file(folder / SINGLE).items()}, folder / name)

    return change


def index_beside(folder: Path) -> None:
    """The index of an older, sharded version beside the single file."""
    other("old.safetensors")(folder)
    names = dict.fromkeys(load_file(folder / SINGLE), "old.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))


def null_metadata(folder: Path) -> None:
    save_file(load_file(folder / SINGLE), folder / SINGLE)
    data = (folder / SINGLE).read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.dumps(json.loads(data[8 : 8 + size]) | {"__metadata__": None}).encode()
    header += b" " * (-len(header) % 8)
    (folder / SINGLE).write_bytes(struct.pack("<Q", len(header)) + header + data[8 + size :])


def only_the_head(loaded: dict[str, Tensor]) -> None:
    loaded[HEAD] = loaded.pop(EMBEDDING)


def added(**extra: Tensor) -> Layout:
    return tensors(lambda t: t.update({name.replace("__", "."): value for name, value in extra.items()}))


TIED = {"tie_word_embeddings": True}
ZEROS = torch.zeros(1, 48)
LAYOUTS: dict[str, tuple[str, dict[str, object], Layout]] = {
    "one file": ("llama", {}, lambda _: None),
    "shards": ("llama", {}, both(shards, edit_json(INDEX, lambda data: data.update(metadata={})))),
    "an old index beside a file": ("llama", {}, index_beside),
    "variants beside a file": ("llama", {}, both(other("model.fp16.safetensors"), other("consolidated.safetensors"))),
    "a pickle beside a file": ("llama", {}, lambda f: torch.save({}, f / "pytorch_model.bin")),
    "null metadata": ("llama", {}, null_metadata),
    "a base model": ("llama", {}, renamed(lambda name: name.removeprefix("model."))),
    "a base model of OPT": ("opt", {}, renamed(lambda name: name.removeprefix("model."))),
    "a base model of experts": ("mixtral", {}, renamed(lambda name: name.removeprefix("model."))),
    "a base model, tied": ("qwen2", TIED, renamed(lambda name: name.removeprefix("model."))),
    "everything below model": ("llama", {}, renamed(lambda n: n if n.startswith("model.") else f"model.{n}")),
    "tied": ("llama", TIED, lambda _: None),
    "tied, the same head stored": ("llama", TIED, tensors(lambda t: t.update({HEAD: t[EMBEDDING].clone()}))),
    "tied, but a head of its own": ("llama", {}, config(tie_word_embeddings=True)),
    "tied, but a head of its own in experts": ("mixtral", {}, config(tie_word_embeddings=True)),
    "tied, the head stored alone": ("llama", TIED, tensors(only_the_head)),
    "a value head": ("llama", {}, added(v_head__summary__weight=ZEROS, v_head__summary__bias=torch.zeros(1))),
    "a score": ("llama", {}, added(score__weight=ZEROS)),
    "scales of a cache": ("llama", {}, added(model__layers__0__self_attn__k_scale=torch.ones(1))),
    "scales of a projection": ("llama", {}, added(model__layers__1__self_attn__v_proj__output_scale=torch.ones(1))),
    "old buffers": ("llama", {}, added(model__layers__0__self_attn__rotary_emb__inv_freq=torch.ones(6))),
    "half of it in another dtype": ("llama", {}, tensors(lambda t: t.update({HEAD: t[HEAD].half()}))),
}


@pytest.fixture
def laid_out(tmp_path: Path, tokenizer) -> Callable[[str], tuple[str, Path]]:
    def make(name: str) -> tuple[str, Path]:
        family, changes, layout = LAYOUTS[name]
        folder = tmp_path / "model"
        make_model(family, **changes).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        layout(folder)
        return family, folder

    return make


@torch.no_grad()
def logits(model: object) -> Tensor:
    return model(input_ids=IDS).logits  # type: ignore[operator, no-any-return]


@pytest.mark.parametrize("name", LAYOUTS)
def test_all_ways_agree_with_transformers(name: str, laid_out, tmp_path: Path) -> None:
    family, folder = laid_out(name)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    expected = logits(theirs)
    assert expected.std() > 0.1
    near = {"rtol": 1e-3, "atol": 2e-4}
    torch.testing.assert_close(logits(load(folder, dtype="float32")), expected, rtol=0, atol=0)
    runner = runner_of(folder, completed({"dtype": "float32"}), memory_budget=1)
    assert isinstance(runner, Streamed)
    with runner.session(IDS, name, Silent()) as session:
        torch.testing.assert_close(torch.cat([session.logits(row[None]) for row in IDS]), expected, **near)
    recipe = jointquant.load_recipe("fp16", small(*possible(family)))
    for what, model in (("folder", folder), ("memory", theirs)):
        out = tmp_path / what
        jointquant.quantize(model, out, recipe, tokenizer=load_tokenizer(folder), dtype="float32")
        torch.testing.assert_close(logits(load(out, dtype="float32")), expected, **near)
    measured = [jointquant.evaluate(each, (TEXT,), seqlen=16, max_tokens=128) for each in (folder, out)]
    assert math.isclose(*(result.perplexity[TEXT] for result in measured), rel_tol=1e-3)


def test_the_table_would_tell_other_weights(laid_out) -> None:
    """The files that must not be read give other logits."""
    _, folder = laid_out("an old index beside a file")
    before = logits(load(folder))
    (folder / SINGLE).unlink()
    assert (logits(load(folder)) - before).abs().max() > 0.1


@pytest.mark.parametrize(
    ("names", "line"),
    [
        (["v_head.summary.weight"], "since no llama model has them: v_head.summary.weight"),
        (list("abcde"), "since no llama model has them: a, b, c and 2 more"),
    ],
)
def test_what_is_left_aside_is_told_once(names: list[str], line: str, laid_out, caplog) -> None:
    _, folder = laid_out("one file")
    tensors(lambda t: t.update({name: torch.zeros(1) for name in names}))(folder)
    contents._say.cache_clear()
    with caplog.at_level(logging.WARNING, "jointquant"):
        for _ in range(2):
            open_stream(folder)
    assert [record.getMessage().partition(", ")[2].partition(", ")[2] for record in caplog.records] == [line]


REFUSED: dict[str, tuple[Layout, str]] = {
    "only variants": (both(other("model.fp16.safetensors"), remove(SINGLE)), "no weights in"),
    "a bias": (added(lm_head__bias=torch.zeros(2048)), "unexpected tensor lm_head.bias"),
    "a norm of the queries": (
        added(model__layers__0__self_attn__q_norm__weight=torch.ones(12)),
        "unexpected tensor model.layers.0.self_attn.q_norm.weight",
    ),
    "scales of weights": (
        added(model__layers__0__mlp__up_proj__weight_scale=torch.ones(1)),
        "without it another model may remain",
    ),
    "a fourth layer": (added(model__layers__3__mlp__up_proj__weight=torch.ones(80, 48)), "there are only 3 layers"),
    "untied without a head": (tensors(lambda t: t.pop(HEAD)), "missing tensor lm_head.weight"),
    "no embedding": (tensors(lambda t: t.pop(EMBEDDING)), f"missing tensor {EMBEDDING}"),
    "tied, and a head of another size": (
        both(config(tie_word_embeddings=True), tensors(lambda t: t.update({HEAD: torch.zeros(9, 48)}))),
        "tensor lm_head.weight has shape [9, 48]",
    ),
    "an adapter": (write("adapter_config.json", "{}"), "expected the two merged"),
    "a pickle alone": (to_pickle, "expected model.safetensors"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str, laid_out) -> None:
    layout, message = REFUSED[name]
    _, folder = laid_out("one file")
    layout(folder)
    for opened in (lambda: open_stream(folder), lambda: load(folder), lambda: jointquant.evaluate(folder, (TEXT,))):
        with pytest.raises(jointquant.InputError, match=message.replace("[", r"\[")):
            opened()


def test_a_pickle_whose_head_shares_its_bytes_is_tied(laid_out) -> None:
    _, folder = laid_out("tied")
    loaded = load_file(folder / SINGLE)
    pickle_of(lambda _: loaded | {HEAD: loaded[EMBEDDING]})(folder)
    assert not open_stream(folder, allow_pickle=True).own_head
