"""R1's losses by layer and by epoch: sums, and what is said of them."""

from __future__ import annotations

from typing import Any

from jointquant.report.layer_losses import comparison_layer_losses, layer_loss_sums
from jointquant.report.page import comparison_page
from report_data import comparison


def data(ends: dict[str, list[float]], objective: str = "whip") -> dict[str, Any]:
    """Recipes named after their strategies, and the losses that they end with."""
    found = comparison(tuple(ends))
    for name, end in ends.items():
        losses = {"epochs": 20.0, "losses": [[6.0, 5.0, 4.0], end]}
        r1 = {"kind": "learned", "strategy": name.removeprefix("exp-"), "objective": objective}
        found["about"]["recipes"][name]["rotations"] = {"r1": r1}
        found["details"][name]["layer_losses"] = losses
    return found


ENDS = {"exp-joint": [3.0, 2.0, 1.5], "exp-independent": [2.5, 2.0, 1.0], "exp-greedy": [4.0, 3.0, 1.0]}


def test_sums_and_who_is_who() -> None:
    (found,) = comparison_layer_losses(data(ENDS))
    assert found.by_layer.columns == ("layer", *ENDS)
    assert found.by_layer.rows[0].cells == ("0", "3", "2.5", "4")
    assert found.by_layer.rows[-1].cells == ("all", "6.5", "5.5", "8")
    assert [row.cells[1] for row in found.by_epoch.rows] == ["15 (epoch 0.0)", "6.5 (epoch 20.0)"]
    joint, independent, greedy, bound = found.words
    assert "lowers the losses of all layers together (`exp-joint`)" in joint
    assert "trained on that layer alone (`exp-independent`)" in independent
    assert "what the code does that JointQuant's document calls independent (`exp-greedy`)" in greedy
    assert "A joint R1 cannot beat independent R1s on their own layers' loss" in bound
    assert "6.5 for exp-joint and 5.5 for exp-independent" in bound
    assert "change of basis between layers at run time" in bound
    assert "not trained to their best" not in bound
    sums = layer_loss_sums(data(ENDS))
    assert sums["exp-joint"]["by_epoch"] == [15.0, 6.5]
    assert sums["exp-greedy"]["by_layer"] == [4.0, 3.0, 1.0]


def test_where_training_fell_short_it_is_said() -> None:
    (found,) = comparison_layer_losses(data({"exp-joint": [1.0, 1.0, 1.0], "exp-independent": [2.0, 1.0, 1.0]}))
    assert found.words[-1].endswith("the others were not trained to their best.")


def test_objectives_are_not_mixed() -> None:
    mixed, swd = data(ENDS), data({"exp-independent": ENDS["exp-independent"]}, "swd")
    mixed["about"]["recipes"]["exp-independent"] = swd["about"]["recipes"]["exp-independent"]
    whip, other = comparison_layer_losses(mixed)
    assert (whip.objective, other.objective) == ("whip", "swd")
    assert whip.by_layer.columns == ("layer", "exp-joint", "exp-greedy")
    assert not any("cannot beat" in words for words in (*whip.words, *other.words))


def test_nothing_learned_is_nothing_shown() -> None:
    plain = comparison()
    assert comparison_layer_losses(plain) == ()
    assert layer_loss_sums(plain) == {}
    assert 'id="layers"' not in comparison_page(plain)


def test_the_page_has_both_tables() -> None:
    page = comparison_page(data(ENDS))
    assert 'id="layers"' in page
    assert "| all | 6.5 | 5.5 | 8 |" in page
    assert "6.5 (epoch 20.0)" in page
    assert "cannot beat independent R1s on their own layers&#39; loss" in page
