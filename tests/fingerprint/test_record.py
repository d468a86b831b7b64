"""fingerprint.json, read as something that nobody vouches for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jointquant import InputError
from jointquant.fingerprint.record import Fingerprint, load_fingerprint, rounded, save_fingerprint

GOOD = Fingerprint(
    text="a b",
    text_tokens=(1, 2),
    chat="",
    tokens=(1, 2, 3),
    log_probabilities=(-1.5, -2.25),
    noise={"float32": 0.0},
    faults={"r4_dropped": (-3.0, -4.0)},
)


def test_what_is_saved_is_read(tmp_path: Path) -> None:
    save_fingerprint(tmp_path / "f.json", GOOD)
    assert load_fingerprint(tmp_path / "f.json") == GOOD
    assert rounded([-0.000001, 1 / 3]) == (0.0, 0.33333)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"log_probabilities": [-1.5]}, "log_probabilities has 1 numbers, expected 2"),
        ({"faults": {"r4_dropped": [1.0, 2.0, 3.0]}}, "r4_dropped has 3 numbers"),
        ({"version": 2}, "version"),
        ({"tokens": [-1, 2, 3]}, "tokens"),
        ({"noise": {"float32": -1.0}}, "noise"),
        ({"faults": {"<b>": [1.0, 2.0]}}, "faults"),
        ({"more": 1}, "more"),
    ],
)
def test_what_is_none_is_refused(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    (tmp_path / "f.json").write_text(json.dumps(GOOD.model_dump(mode="json") | changes))
    with pytest.raises(InputError, match=f"no fingerprint of this version.*{words}"):
        load_fingerprint(tmp_path / "f.json")
