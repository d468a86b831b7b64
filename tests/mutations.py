"""Damage to any bytes of any file, drawn at random."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from hypothesis import strategies as st

EXAMPLES = int(os.environ.get("DAMAGE_EXAMPLES", "12"))
"""How often a test draws damage."""


def flip(data: bytearray, start: int, stop: int) -> bytes:
    """Another bit in each byte."""
    data[start:stop] = bytes(byte ^ 0x10 for byte in data[start:stop])
    return bytes(data)


MUTATIONS = {
    "flip": flip,
    "zero": lambda data, start, stop: bytes(data[:start] + bytes(stop - start) + data[stop:]),
    "cut out": lambda data, start, stop: bytes(data[:start] + data[stop:]),
    "double": lambda data, start, stop: bytes(data[:stop] + data[start:]),
    "truncate": lambda data, start, stop: bytes(data[:start]),
    "append": lambda data, start, stop: bytes(data + bytes(stop - start)),
}


@dataclass(frozen=True)
class Mutation:
    """What becomes of the bytes [start, stop) of a file; ``remove``: the whole of it goes."""

    name: str
    kind: str
    start: int
    stop: int

    def __call__(self, folder: Path) -> None:
        """Do it to the file of this name in a folder."""
        path = folder / self.name
        if self.kind == "remove":
            path.unlink()
        else:
            path.write_bytes(MUTATIONS[self.kind](bytearray(path.read_bytes()), self.start, self.stop))


def drawn(data: st.DataObject, folder: Path) -> Mutation:
    """One for any file of a folder."""
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    name = data.draw(st.sampled_from(names))
    kind = data.draw(st.sampled_from([*MUTATIONS, "remove"]))
    size = (folder / name).stat().st_size
    start = data.draw(st.integers(0, max(0, size - 1)))
    stop = min(size, start + data.draw(st.sampled_from([1, 8, 4096, 1 << 20])))
    return Mutation(name, kind, start, stop)
