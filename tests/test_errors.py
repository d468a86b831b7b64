"""Messages of errors."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from jointquant.errors import InputError, check_all, lines_of, near, printable, require, unknown


def test_what_does_not_print_is_escaped() -> None:
    assert printable("a\nb\t\x1b[31m\u202ec\ud800") == "a b \\x1b[31m\\u202ec\\ud800"
    assert len(printable("x" * 5000)) == 1000


def test_a_word_that_is_meant() -> None:
    names = ["w4a8", "w4a4kv4", "w4a4kv16", "Gguf"]
    assert near("w4a4", names) == " (did you mean 'w4a4kv4'?)"
    assert near("ggfu", names) == " (did you mean 'Gguf'?)"
    assert near("W4A8", names) == " (did you mean 'w4a8'?)"
    assert [near(word, names) for word in ("", "elephant", "w4a4kv4" * 50)] == ["", "", ""]
    assert unknown("size", "x" * 300, ["a", "b"]) == f"unknown size '{'x' * 200}…': expected one of a, b"


def test_all_that_is_wrong_is_told_at_once() -> None:
    def wrong(message: str) -> Callable[[], None]:
        return partial(require, False, message)

    with pytest.raises(InputError) as told:
        check_all(wrong("a"), lambda: None, partial(check_all, wrong("b"), wrong("c")), wrong("a"))
    assert lines_of(told.value) == ("a", "b", "c")
    assert str(told.value) == "a; b; c"
    check_all(lambda: None)
