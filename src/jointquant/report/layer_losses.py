"""What R1 came to on each layer: tables by layer and by epoch, and what joint and independent R1s can do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jointquant.report.tables import Row, Table

Data = Mapping[str, Any]

STRATEGIES = {
    "joint": "one R1 that lowers the losses of all layers together (`exp-joint`)",
    "independent": "an R1 for each layer, trained on that layer alone (`exp-independent`)",
    "greedy": (
        "one R1 that visits the layers in order, each from where the one before left it: what the code does that "
        "JointQuant's document calls independent (`exp-greedy`)"
    ),
    "pooled": "one R1 for the tokens of all layers in one pool",
}
"""What becomes of R1, by strategy, and the preset that is named after it."""


@dataclass(frozen=True)
class LayerLosses:
    """What was learned with one objective.

    Attributes:
        objective: its name.
        by_layer: the loss of each layer at the end, and their sum.
        by_epoch: the sum over layers on the way.
        words: which recipe is which, and what they can do.
    """

    objective: str
    by_layer: Table
    by_epoch: Table
    words: tuple[str, ...]


def comparison_layer_losses(data: Data) -> tuple[LayerLosses, ...]:
    """One for each objective that R1 is learned with in a comparison; none where it is not learned."""
    groups: dict[str, list[str]] = {}
    for row in data["rows"]:
        if data["details"][row["recipe"]].get("layer_losses"):  # absent in what older versions have kept
            groups.setdefault(_r1(data, row["recipe"])["objective"], []).append(row["recipe"])
    return tuple(_of_objective(data, objective, names) for objective, names in groups.items())


def layer_loss_sums(data: Data) -> dict[str, Any]:
    """By recipe: strategy, objective, epochs, and the sum over layers by moment, and the losses at the end by layer."""
    found = {}
    for row in data["rows"]:
        name = row["recipe"]
        if losses := data["details"][name].get("layer_losses"):
            r1, each = _r1(data, name), losses["losses"]
            found[name] = {
                "strategy": r1["strategy"],
                "objective": r1["objective"],
                "epochs": losses["epochs"],
                "by_epoch": [sum(layers) for layers in each],
                "by_layer": each[-1],
            }
    return found


def _of_objective(data: Data, objective: str, names: Sequence[str]) -> LayerLosses:
    losses = {name: data["details"][name]["layer_losses"] for name in names}
    ends = [losses[name]["losses"][-1] for name in names]
    layers = [Row((str(layer), *map(_figure, each))) for layer, each in enumerate(zip(*ends, strict=True))]
    total = Row(("all", *(_figure(sum(end)) for end in ends)), reference=True)
    moments = range(len(losses[names[0]]["losses"]))
    ways = [Row((f"{m / moments[-1]:.0%}", *(_on_the_way(losses[name], m) for name in names))) for m in moments]
    return LayerLosses(
        objective,
        Table(f"layers-{objective}", ("layer", *names), (*layers, total)),
        Table(f"epochs-{objective}", ("part of the training", *names), tuple(ways)),
        (*_who(data, names), *_bound(data, names)),
    )


def _on_the_way(losses: Data, moment: int) -> str:
    """The sum over layers, and the epoch."""
    epoch = losses["epochs"] * moment / (len(losses["losses"]) - 1)
    return f"{_figure(sum(losses['losses'][moment]))} (epoch {epoch:.1f})"


def _who(data: Data, names: Sequence[str]) -> list[str]:
    return [f"{name}: {STRATEGIES[_r1(data, name)['strategy']]}." for name in names]


def _bound(data: Data, names: Sequence[str]) -> list[str]:
    """What one R1 for all and one for each can do; nothing where there are not both."""
    by_strategy = {_r1(data, name)["strategy"]: name for name in reversed(names)}
    if not {"joint", "independent"} <= by_strategy.keys():
        return []
    joint, independent = by_strategy["joint"], by_strategy["independent"]
    sums = {name: sum(data["details"][name]["layer_losses"]["losses"][-1]) for name in (joint, independent)}
    words = (
        "A joint R1 cannot beat independent R1s on their own layers' loss: the best R1 of a layer is at least as good "
        f"there as any that all layers share. Here the sum over layers is {_figure(sums[joint])} for {joint} and "
        f"{_figure(sums[independent])} for {independent}. But independent R1s need a change of basis between layers at "
        "run time, and a joint one needs none."
    )
    if sums[independent] > sums[joint]:
        words += " That the joint one has the lower sum shows that the others were not trained to their best."
    return [words]


def _r1(data: Data, name: str) -> Data:
    settings: Data = data["about"]["recipes"][name]["rotations"]["r1"]
    return settings


def _figure(value: float) -> str:
    return f"{value:.5g}"
