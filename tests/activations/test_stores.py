"""Where hidden states lie."""

from pathlib import Path

import pytest
import torch

from jointquant.activations.stores import SLOTS, SpilledStates


@pytest.mark.parametrize("slots", [SLOTS, SLOTS[:1]])
def test_states_in_files_follow_each_other(slots: tuple[str, ...], tmp_path: Path) -> None:
    store = SpilledStates(tmp_path, (5, 3, 4), torch.float32, slots)
    exact = torch.randn(5, 3, 4)
    for start in (0, 2, 4):
        store.write(start, exact[start : start + 2])
    store.turn()
    for _ in range(3):  # each window is read before it is written, as layers do it
        for start in (0, 2, 4):
            store.write(start, store.read(start, start + 2) * 2 + 1)
        store.turn()
        exact = exact * 2 + 1
    assert torch.equal(store.read(0, 5), exact)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(slots)
