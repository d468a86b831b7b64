"""How an artifact is tuned."""

from __future__ import annotations

import pytest

from jointquant.errors import InputError
from jointquant.tuning.settings import WARMUP, TuneSettings, share_of_rate


def test_the_rate_grows_in_a_line_and_falls_as_a_cosine() -> None:
    shares = [share_of_rate(step, 100) for step in range(101)]
    assert shares[0] == pytest.approx(1 / WARMUP)
    assert max(shares) == shares[WARMUP - 1] > 0.98
    assert shares[50] == pytest.approx(0.5)
    assert shares[WARMUP:] == sorted(shares[WARMUP:], reverse=True)
    assert shares[100] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"batch_tokens": 0}, "batch_tokens is 0"),
        ({"rates": {}}, "nothing is to be trained"),
        ({"rates": {"codes": 0.1}}, "unknown part 'codes'"),
        ({"rates": {"scales": float("nan")}}, "the rate of scales is nan"),
        ({"rates": {"scales": 0.0}}, "the rate of scales is 0"),
    ],
)
def test_what_is_no_setting_is_refused(given: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        TuneSettings(**given)
