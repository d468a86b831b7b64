"""A journal's lines: only those up to the first that does not fit are read."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jointquant.files.digests import digest_of_bytes
from jointquant.run.entries import Entry, Lines, whole

ENTRIES = [Entry("pass", step, {f"work/{step}": "d"}, {"bits": step, "name": "ä"}) for step in range(4)]


def written(path: Path) -> Lines:
    lines = Lines(path, "seed")
    for entry in ENTRIES:
        lines.append(entry)
    return lines


def test_what_is_written_is_read(tmp_path: Path) -> None:
    written(tmp_path / "j")
    assert Lines(tmp_path / "j", "seed").read() == (ENTRIES, False)
    assert Lines(tmp_path / "j", "another run").read() == ([], True)
    assert Lines(tmp_path / "none", "seed").read() == ([], False)


def test_a_chain_goes_on_behind_what_was_read_or_rewritten(tmp_path: Path) -> None:
    written(tmp_path / "j").rewrite(ENTRIES[:2])
    lines = Lines(tmp_path / "j", "seed")
    assert lines.read() == (ENTRIES[:2], False)
    lines.append(ENTRIES[3])
    assert Lines(tmp_path / "j", "seed").read() == ([*ENTRIES[:2], ENTRIES[3]], False)


@given(st.integers(0, 10_000), st.integers(1, 255))
@settings(max_examples=100, deadline=None)
def test_no_changed_byte_is_believed(tmp_path_factory: pytest.TempPathFactory, place: int, change: int) -> None:
    path = tmp_path_factory.mktemp("j") / "j"
    written(path)
    data = bytearray(path.read_bytes())
    place %= len(data)
    data[place] ^= change
    path.write_bytes(bytes(data))
    entries, cut = Lines(path, "seed").read()
    assert cut
    assert entries == ENTRIES[: bytes(data[:place]).count(b"\n")]
    assert Lines(path, "seed").read() == (entries, False)  # what did not fit has been cut away


def test_files_are_those_of_the_last_word(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(name.encode())
    a, b = (digest_of_bytes(name.encode()) for name in ("a", "b"))
    entries = [Entry("p", 0, {"a": "old"}), Entry("p", 1, {"a": a}), Entry("p", 2, {"b": b})]
    assert whole(entries, tmp_path) == (entries, None)
    (tmp_path / "b").write_bytes(b"c")
    assert whole(entries, tmp_path) == (entries[:2], "b")
    (tmp_path / "a").unlink()
    assert whole(entries, tmp_path) == ([], "a")
    assert whole([*entries, Entry("p", 3, {"a": None, "b": None})], tmp_path)[1] is None
