"""The sentence at the top of a report."""

from __future__ import annotations

from jointquant.report.page import comparison_page
from jointquant.report.verdict import comparison_verdict, statistics_verdict, undone_trainings
from report_data import NASTY, comparison, statistics


def test_the_least_divergence_wins_and_fp16_is_no_recipe_that_quantizes() -> None:
    data = comparison(("fp16", "rtn", "dartquant"))
    for row, divergence, bits in zip(data["rows"], (0.0, 0.4, 0.2), (16.0, 4.1, 4.1), strict=True):
        row.update(
            {key: {"a/b.txt": divergence} for key in ("divergence", "divergence_min", "divergence_max")}, bits=bits
        )
    said = comparison_verdict(data)
    assert said.startswith(
        "dartquant loses least: perplexity 11.00 instead of 7.50, KL divergence 0.2000, in 4.10 bits"
    )
    assert said.endswith("25% of the unquantized model.")
    data["rows"][1]["divergence_min"] = {"a/b.txt": 0.19}
    assert comparison_verdict(data).endswith("; over the seeds that were tried, rtn may be as good.")
    for row in data["rows"]:
        row["seeds"] = [0]
    assert "may be as good" not in comparison_verdict(data)
    assert comparison_verdict(comparison(()) | {"rows": data["rows"][:1]}) == "No recipe here quantizes weights."


def test_an_analysis_names_its_worst_site() -> None:
    data = statistics()
    data["sites"][2]["before"] = data["sites"][2]["before"] | {"max_over_rms": 42.0}
    assert statistics_verdict(data).startswith(
        "The largest outliers are at mlp_in: a token's largest value is 42.0 times"
    )
    assert statistics_verdict(data | {"sites": []}) == "No site was measured."


def test_trainings_that_were_undone_are_named() -> None:
    data = comparison()
    assert undone_trainings(data) == []
    assert "Trainings of rotations that ended above" not in comparison_page(data)
    data["details"][NASTY]["undone"] = {"r1": "training undone, objective 1 → 6"}
    assert undone_trainings(data) == [f"{NASTY}, R1: training undone, objective 1 → 6"]
    page = comparison_page(data)
    assert "Trainings of rotations that ended above" in page
    assert "R1: training undone, objective 1 → 6" in page
