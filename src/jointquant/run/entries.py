"""The lines of a journal. Each is chained to all before it, and names the files of its step with their digests.

A line that was cut off, doubled, left out or changed does not fit the chain: it and all behind it never happened.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from jointquant.files.digests import digest_of_bytes, has_digest
from jointquant.files.durable import room_needed, settle

CURRENT = "current"
"""Of a step's facts: files in the work folder that the next step replaces, and their digests."""

READ = "read"
"""Of a step's facts: tensors of the model that it has read, and their digests."""

Named = dict[str, str | None]
"""Files by name, relative to the run's folder, and their digests; None: one that an earlier step left was removed."""


@dataclass(frozen=True)
class Entry:
    """A finished step.

    Attributes:
        stage: the pass.
        step: which of its steps.
        files: those the step left behind.
        facts: what later steps need to know.
    """

    stage: str
    step: int
    files: Named = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


class Lines:
    """The file of a journal.

    Args:
        path: of the file.
        seed: what the chain begins with: the digest of what the run is.
    """

    def __init__(self, path: Path, seed: str) -> None:
        self.path, self.seed, self._chain = path, seed, seed

    def read(self) -> tuple[list[Entry], bool]:
        """The entries up to the first line that does not fit, and whether there was one; it is cut away."""
        entries: list[Entry] = []
        data = self.path.read_bytes() if self.path.is_file() else b""
        good, self._chain = 0, self.seed
        for line in data.splitlines(keepends=True):
            found = _parsed(line, self._chain)
            if found is None:
                break
            entry, self._chain = found
            entries.append(entry)
            good += len(line)
        if good < len(data):
            os.truncate(self.path, good)
        return entries, good < len(data)

    def append(self, entry: Entry) -> None:
        """Write a line; it is on the disk when this returns. Raises ResumableError when the disk is full."""
        line, self._chain = _line(entry, self._chain)
        with room_needed(self.path, len(line)), self.path.open("ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def rewrite(self, entries: Iterable[Entry]) -> None:
        """These entries and no others. Raises ResumableError when the disk is full."""
        self._chain, lines = self.seed, []
        for entry in entries:
            line, self._chain = _line(entry, self._chain)
            lines.append(line)
        aside = self.path.with_name(f"{self.path.name}.part")
        with room_needed(aside, sum(map(len, lines))):
            aside.write_bytes(b"".join(lines))
            settle(aside, self.path)


def whole(entries: list[Entry], folder: Path) -> tuple[list[Entry], str | None]:
    """The entries before the first that names a file which is not what was written, and that file; None: all are whole.

    Of a file named twice the last word counts.
    """
    last = {name: digest for entry in entries for name, digest in entry.files.items()}
    damaged = {n for n, digest in last.items() if digest is not None and not has_digest(folder / n, digest)}
    gone = {name for name, digest in last.items() if digest is None}
    for number, entry in enumerate(entries):
        for name in entry.files:
            if name in damaged and name not in gone:
                return entries[:number], name
    return entries, None


def _line(entry: Entry, chain: str) -> tuple[bytes, str]:
    data = json.dumps(asdict(entry), sort_keys=True)
    chain = digest_of_bytes(f"{chain} {data}".encode())
    return f'{{"chain": "{chain}", "entry": {data}}}\n'.encode(), chain


def _parsed(line: bytes, chain: str) -> tuple[Entry, str] | None:
    try:
        entry = Entry(**json.loads(line)["entry"])
    except (ValueError, TypeError, KeyError):
        return None
    expected, chain = _line(entry, chain)
    return (entry, chain) if line == expected else None
