"""Generators by purpose, and batches of a set."""

from __future__ import annotations

import pytest
import torch

from jointquant.seeds import rounds


@pytest.mark.parametrize(("windows", "size"), [(6, 2), (7, 3), (5, 9)])
def test_every_window_of_a_round_comes_once(windows: int, size: int) -> None:
    draws = rounds(windows, size, torch.Generator().manual_seed(0))
    size = min(size, windows)
    drawn_rounds = [torch.cat([next(draws) for _ in range(windows // size)]).tolist() for _ in range(3)]
    assert all(len(set(drawn)) == len(drawn) == windows - windows % size for drawn in drawn_rounds)
    assert windows < 6 or drawn_rounds[0] != drawn_rounds[1]
