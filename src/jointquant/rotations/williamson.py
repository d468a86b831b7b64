"""Williamson seeds: Hadamard matrices of order 4m for orders that no Paley construction reaches.

Four symmetric circulant ±1 matrices A, B, C, D of odd order m with A² + B² + C² + D² = 4m I give
the Hadamard matrix of order 4m that `williamson_matrix` assembles (J. Williamson, "Hadamard's
determinant theorem and the sum of four squares", Duke Math. J. 11, 1944).

The sign sequences are published facts. They were looked up in SageMath's tables
(`sage/combinat/matrices/hadamard_matrix.py`), which take m = 23, 29 and 43 from M. Hall,
"Combinatorial Theory", 2nd ed., Wiley 1983, and m = 39 from S. London, "Constructing New Turyn Type
Sequences, T-Sequences and Hadamard Matrices", 2013. The tests verify each from the definition above.
"""

from __future__ import annotations

import torch

_FIRST_HALVES: dict[int, tuple[str, str, str, str]] = {
    23: ("++---+---+-+", "+-++-++--+++", "+++---++-+-+", "+++-+++-+---"),
    29: ("+++---++--+-+--", "+-+---++--+-+++", "++++-++-+---+++", "++--+--+-+++-++"),
    39: ("+++--+-+-----+--++--", "+++--++-+---+-+--+--", "++++---+--++----+-+-", "+---++-+-+-----+++-+"),
    43: (
        "++---++++-+--+--++----",
        "+++-+-++--+-+-++++-+--",
        "++-++++++----+-+--++-+",
        "+---++--++++-+-+++-++-",
    ),
}
"""Entries 0 … (m-1)/2 of the first rows of A, B, C, D; entry m-i equals entry i."""

WILLIAMSON_LENGTHS: tuple[int, ...] = tuple(sorted(_FIRST_HALVES))
"""The odd lengths m for which seeds are stored; they give Hadamard orders 4m."""


def williamson_sequences(length: int) -> torch.Tensor:
    """First rows of the four symmetric circulants.

    Args:
        length: m, one of `WILLIAMSON_LENGTHS`.

    Returns:
        [4, m] int8 of ±1 on the CPU, each row symmetric: entry i equals entry (m - i) mod m.

    Raises:
        ValueError: no seeds are stored for this length.
    """
    if length not in _FIRST_HALVES:
        raise ValueError(f"Williamson seeds exist for lengths {WILLIAMSON_LENGTHS}, got {length}")
    rows = [half + half[:0:-1] for half in _FIRST_HALVES[length]]
    signs = [[1 if sign == "+" else -1 for sign in row] for row in rows]
    return torch.tensor(signs, dtype=torch.int8, device="cpu")


def williamson_matrix(length: int) -> torch.Tensor:
    """Hadamard matrix of order 4m from the stored seeds of length m (Williamson's array, 1944).

    Args:
        length: m, one of `WILLIAMSON_LENGTHS`.

    Returns:
        [4m, 4m] int8 of ±1 on the CPU with H Hᵀ = 4m I.

    Raises:
        ValueError: no seeds are stored for this length.
    """
    places = torch.arange(length, device="cpu")
    shifts = (places[None, :] - places[:, None]) % length
    a, b, c, d = williamson_sequences(length)[:, shifts]
    array = [[a, b, c, d], [-b, a, -d, c], [-c, d, a, -b], [-d, -c, b, a]]
    return torch.cat([torch.cat(blocks, dim=1) for blocks in array], dim=0)
