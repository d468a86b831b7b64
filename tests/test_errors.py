"""Messages of errors."""

from __future__ import annotations

from jointquant.errors import printable


def test_what_does_not_print_is_escaped() -> None:
    assert printable("a\nb\t\x1b[31m\u202ec\ud800") == "a b \\x1b[31m\\u202ec\\ud800"
    assert len(printable("x" * 5000)) == 1000
