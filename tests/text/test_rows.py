"""Rows of a data set as text."""

from __future__ import annotations

import pytest

from jointquant.errors import InputError
from jointquant.text.rows import joined, strings


def test_empty_rows_are_left_out_and_others_have_blank_lines_between_them() -> None:
    assert list(strings(["a", None, ""])) == ["a", ""]
    assert joined(["a", None, "b"]) == "a\n\nb"


def test_a_row_that_is_no_text_is_named() -> None:
    with pytest.raises(InputError, match="row 1 of the text's column is no text but int: 7"):
        joined(["a", 7])
