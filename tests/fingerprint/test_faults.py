"""Each fault predicts what a model that has it computes: identities in float64."""

from __future__ import annotations

import torch

from jointquant.fingerprint.faults import FAULTS, halves_as_neighbours, neighbours_as_halves
from jointquant.rotations.hadamard import HadamardTransform, random_hadamard

GENERATOR = torch.Generator().manual_seed(0)
R1 = random_hadamard(12, GENERATOR)
EMBEDDING, HEAD = (torch.randn(7, 12, generator=GENERATOR, dtype=torch.float64) for _ in range(2))


def test_wrong_embeddings() -> None:
    right = EMBEDDING @ R1
    wrong = {"rotated_twice": right @ R1, "rotation_transposed": EMBEDDING @ R1.T, "rotation_missing": EMBEDDING}
    wrong["ends_rotated_twice"] = wrong["rotated_twice"]
    assert set(wrong) == {name for name, fault in FAULTS.items() if fault.start}
    for name, rows in wrong.items():
        start = FAULTS[name].start
        assert start is not None
        torch.testing.assert_close(start(right, R1), rows)


def test_wrong_heads() -> None:
    right, read = HEAD @ R1, torch.randn(5, 12, generator=GENERATOR, dtype=torch.float64)
    wrong = {"head_rotated_twice": right @ R1, "head_transposed": HEAD @ R1.T, "head_unrotated": HEAD}
    wrong["ends_rotated_twice"] = wrong["head_rotated_twice"]
    assert set(wrong) == {name for name, fault in FAULTS.items() if fault.end}
    for name, rows in wrong.items():
        end = FAULTS[name].end
        assert end is not None
        torch.testing.assert_close(end(read, R1) @ right.T, read @ rows.T)


def test_wrong_inner_rotations() -> None:
    r4 = HadamardTransform.of_size(20)
    x = torch.randn(3, 20, generator=GENERATOR, dtype=torch.float64)
    dropped, transposed = FAULTS["r4_dropped"].down, FAULTS["r4_transposed"].down
    assert dropped is not None
    assert transposed is not None
    torch.testing.assert_close(r4.apply(dropped(x, r4)), x)
    torch.testing.assert_close(r4.apply(transposed(x, r4)), x @ r4.matrix().T)


def test_orders_of_rotary_pairs() -> None:
    rows = torch.arange(12.0).view(1, 2, 6)
    assert halves_as_neighbours(rows)[0, 0].tolist() == [0, 2, 4, 1, 3, 5]
    torch.testing.assert_close(neighbours_as_halves(halves_as_neighbours(rows)), rows)
