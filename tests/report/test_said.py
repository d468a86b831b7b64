"""Texts of models, parted where they leave the unquantized model's."""

from __future__ import annotations

import pytest

from jointquant.report.said import comparison_ends, comparison_said
from report_data import comparison, generation


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
    data["reference"]["generations"], data["details"]["rtn"]["generations"] = (
        [generation(each)] for each in ("one two three", text)
    )
    (said,) = comparison_said(data)
    reference, answer = said.answers
    assert (reference.name, reference.same, reference.other) == ("unquantized", "one two three", "")
    assert (answer.name, answer.same, answer.other) == ("rtn", same, other)


def test_a_continuation_stands_without_its_prompt_and_an_answer_as_it_is() -> None:
    data = comparison(("rtn",))
    data["about"]["prompts"] = ["Say it:", "Hello"]
    data["reference"]["generations"] = [generation("Say it: one"), generation("I am")]
    data["details"]["rtn"]["generations"] = [generation("Say it: two"), generation("I was")]
    texts = [[answer.same + answer.other for answer in said.answers] for said in comparison_said(data)]
    assert texts == [[" one", " two"], ["I am", "I was"]]


def test_how_texts_end_and_how_long_they_are() -> None:
    data = comparison(("rtn",))
    data["about"]["prompts"] = ["a", "b"]
    data["reference"]["generations"] = [generation("", 10, ended=True), generation("", 10)]
    data["details"]["rtn"]["generations"] = [generation("", 30, loops=True), generation("", 20, ended=True)]
    assert [row.cells for row in comparison_ends(data, {"rtn": "s1"}).rows] == [
        ("unquantized", "1 of 2", "0 of 2", "20", "1.00 ×"),
        ("rtn", "1 of 2", "1 of 2", "50", "2.50 ×"),
    ]
    first, second = ([answer.end for answer in said.answers] for said in comparison_said(data))
    assert first == ["10 tokens, it ends there", "30 tokens, it repeats itself"]
    assert second == ["10 tokens, cut off there", "20 tokens, it ends there"]
