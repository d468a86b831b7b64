"""Headers of shards and indexes: a correct one loads as the library loads it, any other is refused, and at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from hostile.damage import raw_header, raw_shard
from jointquant.errors import InputError
from jointquant.trust.safetensors_header import BITS, HeaderEntry, read_header, read_metadata

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
ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "BF16", "F64", "BOOL", "F4", "X"]) | ANYTHING,
        "shape": st.lists(st.integers(0, 6), max_size=3) | ANYTHING,
        "data_offsets": st.lists(st.integers(0, 64), min_size=2, max_size=2) | ANYTHING,
    },
)


def outcome(path: Path) -> dict[str, HeaderEntry] | None:
    """The header as we read it, or None where it is refused."""
    try:
        return read_header(path)
    except InputError:
        return None


def check_against_library(path: Path) -> None:
    """What we accept, the library loads, with the same shapes, dtypes and bytes in all."""
    entries = outcome(path)
    if entries is None:
        return
    with safe_open(path, framework="pt") as shard:
        assert set(shard.keys()) == set(entries)
        for name, entry in entries.items():
            found = shard.get_slice(name)
            assert tuple(found.get_shape()) == entry.shape
            assert found.get_dtype() == entry.dtype


def sample(folder: Path) -> bytes:
    save_file(SAMPLE, folder / "sample.safetensors", metadata={"format": "pt"})
    return (folder / "sample.safetensors").read_bytes()


def test_a_good_header(tmp_path: Path) -> None:
    sample(tmp_path)
    path = tmp_path / "sample.safetensors"
    entries = read_header(path)
    assert {name: entry.shape for name, entry in entries.items()} == {k: tuple(t.shape) for k, t in SAMPLE.items()}
    assert sum(entry.end - entry.begin for entry in entries.values()) == sum(t.nbytes for t in SAMPLE.values())
    assert read_metadata(path) == {"format": "pt"}
    check_against_library(path)


@QUICK
@given(data=st.data())
def test_mutated_bytes(data: st.DataObject, tmp_path: Path) -> None:
    content = bytearray(sample(tmp_path))
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(0, len(content)))
        match data.draw(st.sampled_from(["set", "insert", "delete", "cut"])):
            case "set" if at < len(content):
                content[at] = data.draw(st.integers(0, 255))
            case "insert":
                content[at:at] = data.draw(st.binary(max_size=20))
            case "delete":
                del content[at : at + data.draw(st.integers(1, 20))]
            case "cut":
                del content[at:]
    path = tmp_path / "mutated.safetensors"
    path.write_bytes(content)
    check_against_library(path)


@QUICK
@given(header=st.dictionaries(WORDS, ENTRIES | ANYTHING, max_size=4) | ANYTHING, body=st.binary(max_size=64))
@example(header={"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, body=b"01234567")
def test_any_json_for_a_header(header: Any, body: bytes, tmp_path: Path) -> None:
    path = tmp_path / "any.safetensors"
    path.write_bytes(raw_shard(json.dumps(header).encode(), body))
    check_against_library(path)


@QUICK
@given(name=st.sampled_from(sorted(SAMPLE)), entry=ENTRIES)
def test_one_entry_of_a_good_header_replaced(name: str, entry: dict[str, Any], tmp_path: Path) -> None:
    sample(tmp_path)
    header, body = raw_header(tmp_path / "sample.safetensors")
    path = tmp_path / "replaced.safetensors"
    path.write_bytes(raw_shard(json.dumps(header | {name: header[name] | entry}).encode(), body))
    check_against_library(path)


@QUICK
@given(content=st.binary(max_size=200))
def test_any_bytes_for_a_shard(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bytes.safetensors"
    path.write_bytes(content)
    check_against_library(path)


@pytest.mark.parametrize("keys", [20_000])
def test_many_repeated_keys_take_no_time(keys: int, tmp_path: Path) -> None:
    path = tmp_path / "many.safetensors"
    text = "{" + ",".join(f'"k{number}":0' for number in range(keys)) + f',"k{keys - 1}":0}}'
    path.write_bytes(raw_shard(text.encode()))
    with pytest.raises(InputError, match=f"'k{keys - 1}' stands twice"):
        read_header(path)
