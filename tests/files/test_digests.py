"""Fingerprints tell any change of bytes, names, shapes and dtypes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from jointquant.errors import InputError
from jointquant.files.digests import (
    PIECE,
    check_digest,
    digest_of_bytes,
    digest_of_file,
    digest_of_stored,
    digest_of_tensors,
    has_digest,
    running,
)
from jointquant.files.durable import bytes_of


@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, 2 * PIECE + 3])
def test_a_file_read_in_pieces_has_the_digest_of_its_bytes(size: int, tmp_path: Path) -> None:
    data = (
        torch.randint(0, 256, (size,), generator=torch.Generator().manual_seed(size)).to(torch.uint8).numpy().tobytes()
    )
    path = tmp_path / "file"
    path.write_bytes(data)
    assert digest_of_file(path) == digest_of_bytes(data) == xxhash.xxh3_128_hexdigest(data)
    assert has_digest(path, digest_of_bytes(data))
    path.write_bytes(data + b"\0")
    assert not has_digest(path, digest_of_bytes(data))
    path.unlink()
    assert not has_digest(path, digest_of_bytes(data))


@given(st.lists(st.binary(max_size=50), max_size=5))
def test_pieces_add_up(pieces: list[bytes]) -> None:
    total = running()
    for piece in pieces:
        total.update(piece)
    assert total.hexdigest() == digest_of_bytes(b"".join(pieces))


def test_tensors() -> None:
    """Their order does not matter; a name, a shape, a dtype or a bit does."""
    x = torch.arange(6, dtype=torch.float32)
    found = digest_of_tensors({"a": x, "b": x + 1})
    assert found == digest_of_tensors({"b": x + 1, "a": x.clone()})
    others = [
        {"a": x + 1, "b": x},
        {"a": x.view(2, 3), "b": x + 1},
        {"a": x.view(torch.int32), "b": x + 1},
        {"a": x},
        {"a": x, "c": x + 1},
        {"a": torch.nextafter(x, x + 1), "b": x + 1},
    ]
    assert len({found, *(digest_of_tensors(other) for other in others)}) == len(others) + 1
    assert digest_of_tensors({"a": torch.ones(3, 2).T}) == digest_of_tensors({"a": torch.ones(2, 3)})
    assert digest_of_tensors({"empty": torch.empty(0, 3)}) != digest_of_tensors({})


@given(
    st.sampled_from([torch.float32, torch.bfloat16, torch.float64, torch.int8, torch.int32]),
    st.lists(st.integers(0, 5), max_size=3),
)
def test_stored_bytes_have_the_digest_of_their_tensor(dtype: torch.dtype, shape: list[int]) -> None:
    tensor = torch.arange(math.prod(shape)).reshape(shape).to(dtype)
    data = bytes_of(tensor) if tensor.numel() else b""
    assert digest_of_stored(data, ("a", dtype, tuple(shape))) == digest_of_tensors({"a": tensor})


@pytest.mark.parametrize(("found", "written"), [(None, "0a"), ("1b", "0a"), ("1b", None), (None, None)])
def test_what_is_not_as_it_was_is_refused(found: str | None, written: str | None, tmp_path: Path) -> None:
    check_digest("tensor a", tmp_path, "0a", "0a")
    with pytest.raises(InputError, match=f"tensor a in {tmp_path} is not what was written .*: expected .*, fetch it"):
        check_digest("tensor a", tmp_path, found, written, "fetch it")
