"""Options that say how a model is found and opened."""

from __future__ import annotations

import pytest

from jointquant.errors import InputError
from jointquant.models.options import VARIABLE, completed, of_folder


def test_what_is_left_out_has_its_default() -> None:
    given = completed({"dtype": "float32"})
    assert given["dtype"] == "float32"
    assert given.keys() == completed({}).keys()
    assert completed(given) == given


def test_a_folder_that_was_found_has_no_revision() -> None:
    given = completed({"revision": "v1", "dtype": "float32"})
    assert of_folder(given) == {**given, "revision": None}


def test_an_option_that_is_none_is_refused() -> None:
    with pytest.raises(TypeError, match="dtyp"):
        completed({"dtyp": "float32"})  # type: ignore[typeddict-unknown-key]


def test_a_word_about_digests_is_one_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    assert completed({})["digests"] == "check"
    assert completed({"digests": "ignore"})["digests"] == "ignore"
    with pytest.raises(InputError, match="digests 'no': expected one of check, ignore"):
        completed({"digests": "no"})  # type: ignore[typeddict-item]
    monkeypatch.setenv(VARIABLE, "ignore")
    assert completed({})["digests"] == "ignore"
    assert completed({"digests": "check"})["digests"] == "check"
    monkeypatch.setenv(VARIABLE, "never")
    with pytest.raises(InputError, match="digests 'never'"):
        completed({})
