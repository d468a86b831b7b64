"""When a text has come to repeat itself: against a search over all pieces."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from jointquant.text.loops import LEAST, TIMES, loops

IDS = st.lists(st.integers(0, 3), max_size=40)


@settings(deadline=None)
@given(IDS, st.lists(st.integers(0, 3), min_size=1, max_size=12), st.integers(1, 8))
def test_as_a_search_over_all_ends_says(before: list[int], piece: list[int], times: int) -> None:
    ids = before + piece * times
    pairs = [(size, period) for size in range(LEAST, len(ids) + 1) for period in range(1, size // TIMES + 1)]
    assert loops(ids) == any(
        all(token == end[i % period] for i, token in enumerate(end)) for size, period in pairs for end in [ids[-size:]]
    )


@given(IDS)
def test_a_piece_three_times_and_long_enough_is_a_loop(before: list[int]) -> None:
    assert loops(before + [*range(10)] * 3)
    assert not loops(before + [*range(10)] * 2 + [99])
    assert not loops(before + [98, 99] + [7] * (LEAST - 1))
