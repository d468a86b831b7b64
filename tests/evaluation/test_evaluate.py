"""evaluate: what it is given."""

from __future__ import annotations

import pytest

from jointquant import InputError, evaluate


def test_texts_are_several(save_model) -> None:
    with pytest.raises(InputError, match="texts is one string"):
        evaluate(save_model("llama"), "wikitext2")
