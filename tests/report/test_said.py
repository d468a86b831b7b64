"""Texts of models, parted where they leave the unquantized model's."""

from __future__ import annotations

import pytest

from jointquant.report.said import comparison_said
from report_data import comparison


@pytest.mark.parametrize(
    ("text", "same", "other"),
    [
        ("one two three", "one two three", ""),
        ("one two threes", "one two", " threes"),
        ("one two", "one two", ""),
        ("one two three four", "one two three", " four"),
        ("other", "", "other"),
        ("one  two three", "one", "  two three"),
        ("", "", ""),
    ],
)
def test_where_a_text_leaves_the_reference(text: str, same: str, other: str) -> None:
    data = comparison(("rtn",))
    data["reference"]["generations"], data["details"]["rtn"]["generations"] = ["one two three"], [text]
    (said,) = comparison_said(data)
    reference, answer = said.answers
    assert (reference.name, reference.same, reference.other) == ("unquantized", "one two three", "")
    assert (answer.name, answer.same, answer.other) == ("rtn", same, other)


def test_a_continuation_stands_without_its_prompt_and_an_answer_as_it_is() -> None:
    data = comparison(("rtn",))
    data["about"]["prompts"] = ["Say it:", "Hello"]
    data["reference"]["generations"] = ["Say it: one", "I am"]
    data["details"]["rtn"]["generations"] = ["Say it: two", "I was"]
    texts = [[answer.same + answer.other for answer in said.answers] for said in comparison_said(data)]
    assert texts == [[" one", " two"], ["I am", "I was"]]
