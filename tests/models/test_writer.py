"""Shards and their index, as transformers reads them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from jointquant.files.digests import digest_of_tensors
from jointquant.models.source import Checkpoint
from jointquant.models.writer import ShardWriter


def test_the_index_says_where_each_tensor_is(tmp_path: Path) -> None:
    writer, shards = ShardWriter(tmp_path, 2), [{"a.weight": torch.ones(2, 3)}, {"b.weight": torch.zeros(4)}]
    for shard in shards:
        writer.write(shard)
    writer.finish()
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == {
        "a.weight": "model-00001-of-00002.safetensors",
        "b.weight": "model-00002-of-00002.safetensors",
    }
    assert index["metadata"]["total_size"] == 4 * 10
    assert torch.equal(Checkpoint(tmp_path).load("a.weight"), shards[0]["a.weight"])


def test_shards_of_a_run_before_are_entered_and_not_written(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, 2)
    tensors = {"a.weight": torch.ones(2, 3)[:, ::2], "b.weight": torch.zeros(4)}
    digests = {name: digest_of_tensors({name: tensor}) for name, tensor in tensors.items()}
    assert writer.enter({"a.weight": digests["a.weight"]}, 24) == "model-00001-of-00002.safetensors"
    assert writer.write({"b.weight": tensors["b.weight"]}).name == "model-00002-of-00002.safetensors"
    assert writer.digests == digests
    assert writer.total_size == 24 + 16


def test_no_index_without_all_shards(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, 2)
    writer.write({"a.weight": torch.ones(1)})
    with pytest.raises(RuntimeError, match="expected 2 shards, 1 were written"):
        writer.finish()
    assert not (tmp_path / "model.safetensors.index.json").exists()
