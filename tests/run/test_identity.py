"""What makes two runs the same: fingerprints of files and tensors, and what ranks tell each other."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from jointquant.distributed.ranks import ALONE, Ranks
from jointquant.errors import InputError
from jointquant.run.identity import PIECE, PIECES, check_alike, sample_digest


@dataclass(frozen=True)
class Told(Ranks):
    """Two ranks, of which the other one says ``other``."""

    size: int = 2
    other: dict[str, Any] = field(default_factory=dict)

    def ask(self, own: Any) -> list[Any]:
        return [own, self.other]


def test_a_fingerprint_sees_the_first_byte_the_last_and_the_size(tmp_path: Path) -> None:
    content = bytearray(2 * PIECES * PIECE)
    path = tmp_path / "x"
    found = set()
    for change in (None, 0, len(content) - 1):
        changed = bytearray(content)
        if change is not None:
            changed[change] = 1
        path.write_bytes(changed)
        found.add(sample_digest(path))
    path.write_bytes(content + b"\0")
    assert len(found | {sample_digest(path)}) == 4


def test_ranks_with_another_recipe_are_named(tmp_path: Path) -> None:
    own = {"model": {"config": "a"}, "recipe": {"weights": {"num_bits": 4}}}
    other = {"model": {"config": "a"}, "recipe": {"weights": {"num_bits": 3}}}
    check_alike(ALONE, own, None)
    check_alike(Told(other=own), own, None)
    with pytest.raises(InputError, match=r"rank 1 was given another run.*recipe\.weights\.num_bits"):
        check_alike(Told(other=other), own, None)
