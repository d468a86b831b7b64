"""Indexes of shards: a correct one is read, any other is refused, and at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from hostile.damage import raw_shard
from jointquant.errors import InputError
from jointquant.models.source import Checkpoint
from jointquant.trust.safetensors_header import BITS
from jointquant.trust.shard_index import SAFETENSORS, read_index

QUICK = settings(max_examples=150, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
SAMPLE = {
    "a": torch.arange(6.0).reshape(2, 3),
    "b.weight": torch.ones(4, dtype=torch.bfloat16),
    "empty": torch.zeros(0, 5),
    "scalar": torch.tensor(1.5, dtype=torch.float64),
}
# Anything JSON can say, and what stands in real headers, so that mutations come close to valid ones.
NUMBERS = st.one_of(st.integers(-3, 40), st.integers(), st.floats(allow_nan=False), st.booleans(), st.none())
WORDS = st.one_of(st.sampled_from(["dtype", "shape", "data_offsets", "__metadata__", "a", *BITS]), st.text(max_size=5))
ANYTHING = st.recursive(
    NUMBERS | WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=12,
)
SHARDS = st.one_of(st.sampled_from(["s1.safetensors", "s2.safetensors", "../s1.safetensors", "/s", ""]), ANYTHING)


@QUICK
@given(
    index=st.fixed_dictionaries({}, optional={"weight_map": st.dictionaries(st.sampled_from("ab"), SHARDS) | ANYTHING})
    | ANYTHING
)
@example(index={"weight_map": {"a": "s1.safetensors", "b": "s2.safetensors"}})
def test_any_json_for_an_index(index: Any, tmp_path: Path) -> None:
    """Only the index that tells the truth is followed."""
    for name, shard in (("a", "s1"), ("b", "s2")):
        save_file({name: SAMPLE["a"]}, tmp_path / f"{shard}.safetensors")
    (tmp_path / SAFETENSORS.index).write_text(json.dumps(index))
    try:
        checkpoint = Checkpoint(tmp_path)
    except InputError:
        return
    truth = {"a": "s1.safetensors", "b": "s2.safetensors"}
    assert index["weight_map"].items() <= truth.items()
    for name in index["weight_map"]:
        torch.testing.assert_close(checkpoint.load(name), SAMPLE["a"], rtol=0, atol=0)


@QUICK
@given(data=st.data())
def test_mutated_index(data: st.DataObject, tmp_path: Path) -> None:
    content = bytearray(json.dumps({"metadata": {}, "weight_map": {"a": "s1.safetensors"}}).encode())
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / SAFETENSORS.index).write_bytes(content)
    try:
        files = read_index(tmp_path).files
    except InputError:
        return
    assert all((tmp_path / file).parent == tmp_path for file in files)


def test_a_thousand_shards_open_quickly(tmp_path: Path) -> None:
    """Only headers are read: bodies may be as large as disks are."""
    weight_map = {}
    for number in range(1000):
        name, file = f"t{number}", f"s{number}.safetensors"
        header = {name: {"dtype": "BF16", "shape": [1 << 20, 1 << 10], "data_offsets": [0, 1 << 31]}}
        content = raw_shard(json.dumps(header).encode())
        with (tmp_path / file).open("wb") as shard:
            shard.write(content)
            shard.truncate(len(content) + (1 << 31))
        weight_map[name] = file
    (tmp_path / SAFETENSORS.index).write_text(json.dumps({"weight_map": weight_map}))
    assert len(Checkpoint(tmp_path).shapes()) == 1000
