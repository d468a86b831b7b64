"""Plots of losses: one that is alone has its values beside it, in numbers."""

from __future__ import annotations

import pytest

from jointquant.report.loss_figures import divergence_figure, parts_figures, perplexity_figure, trade_figure
from jointquant.report.page import comparison_page
from report_data import comparison

STYLE = {"quarot": "c0", "dartquant": "c1"}
DATA = comparison(tuple(STYLE))


def test_the_values_of_a_plot_stand_beside_it() -> None:
    DATA["rows"][0]["divergence"] = {"a/b.txt": 0.0}  # has no place on the plot's logarithmic axis
    trade = trade_figure(DATA, STYLE).beside
    assert trade is not None
    assert [row.cells for row in trade.rows] == [("quarot", "4.10", "0.0000"), ("dartquant", "4.10", "10.0000")]
    dots = perplexity_figure(DATA, STYLE).beside
    assert dots is not None
    assert dots.columns == ("recipe", "perplexity")
    assert [row.cells for row in dots.rows] == [
        ("unquantized", "7.5000"),
        ("quarot", "9.0000"),
        ("dartquant", "10.0000"),
    ]
    assert [row.style for row in dots.rows] == ["", "c0", "c1"]


def test_several_seeds_have_a_best_and_a_worst_one() -> None:
    data = comparison(tuple(STYLE))
    data["rows"][1]["perplexity_max"] = {"a/b.txt": 10.5}
    dots = perplexity_figure(data, STYLE).beside
    assert dots is not None
    assert dots.columns == ("recipe", "perplexity", "best seed", "worst seed")
    assert [row.cells[1:] for row in dots.rows] == [
        ("7.5000", "", ""),
        ("9.0000",) * 3,
        ("10.0000", "10.0000", "10.5000"),
    ]


def test_parts_say_how_much_less_is_lost_without_them() -> None:
    (figure,) = parts_figures({"dartquant": DATA["details"]["dartquant"]["parts"]}, STYLE)
    assert figure.beside is not None
    assert [row.cells for row in figure.beside.rows] == [
        ("nothing", "0.5000", ""),
        ("inputs of mlp_in", "0.3000", "−0.2000"),
    ]


@pytest.mark.parametrize("make", [trade_figure, perplexity_figure, divergence_figure])
def test_of_two_plots_each_has_the_room_beside_the_other(make) -> None:
    two = comparison(tuple(STYLE), texts=("a.txt", "b.txt"))
    assert make(two, STYLE).beside is None
    assert make(DATA, STYLE).beside is not None


def test_a_page_shows_tables_beside_plots_that_are_alone() -> None:
    one, two = comparison_page(DATA), comparison_page(comparison(tuple(STYLE), texts=("a.txt", "b.txt")))
    assert one.count('<div class="beside">') == one.count('<div class="panels alone">') == 4
    assert two.count('<div class="beside">') == two.count('<div class="panels alone">') == 1  # where the loss is
