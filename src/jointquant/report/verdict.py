"""What a report comes to, in one sentence."""

from __future__ import annotations

from typing import Any

from jointquant.report.tables import size

Data = dict[str, Any]
FLOATING = 15.5
"""Bits a weight from which on a recipe quantizes none."""


def comparison_verdict(data: Data) -> str:
    """Which recipe loses least, what it costs, and which others are as good within the spread of their seeds."""
    texts = list(data["reference"]["perplexity"])
    rows = [row for row in data["rows"] if row["bits"] < FLOATING]
    if not rows or not texts:
        return "No recipe here quantizes weights."
    best = {text: min(rows, key=lambda row: row["divergence"][text]) for text in texts}
    first, text = best[texts[0]], texts[0]
    base, found = data["reference"]["perplexity"][text], first["perplexity"][text]
    where = "" if len({row["recipe"] for row in best.values()}) == 1 else " on the first text"
    part = first["size_bytes"] / data["reference"]["size_bytes"]
    sentence = (
        f"{first['recipe']} loses least{where}: perplexity {found:.2f} instead of {base:.2f}, KL divergence "
        f"{first['divergence'][text]:.4f}, in {first['bits']:.2f} bits a weight and {size(first['size_bytes'])}, "
        f"{part:.0%} of the unquantized model"
    )
    alike = [row["recipe"] for row in rows if row is not first and _overlap(row, first, text)]
    return sentence + (f"; over the seeds that were tried, {_and(alike)} may be as good." if alike else ".")


def undone_trainings(data: Data) -> list[str]:
    """Which trainings of which recipes ended above their start, so that the start was kept; a line each."""
    found = {row["recipe"]: data["details"][row["recipe"]].get("undone", {}) for row in data["rows"]}  # older: absent
    return [f"{name}, {kind.upper()}: {words}" for name, kinds in found.items() for kind, words in kinds.items()]


def statistics_verdict(data: Data) -> str:
    """Where the outliers were, and what the rotations leave of them."""
    if not data["sites"]:
        return "No site was measured."
    worst = max(data["sites"], key=lambda row: row["before"]["max_over_rms"])
    before, after = worst["before"]["max_over_rms"], worst["after"]["max_over_rms"]
    return (
        f"The largest outliers are at {worst['site']}: a token's largest value is {before:.1f} times its RMS, and "
        f"{after:.1f} times behind the rotations of {data['about']['recipe']}."
    )


def _overlap(row: Data, best: Data, text: str) -> bool:
    """Whether the ranges of two recipes over several seeds have a value in common."""
    several = len(row["seeds"]) > 1 or len(best["seeds"]) > 1
    return several and bool(row["divergence_min"][text] <= best["divergence_max"][text])


def _and(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
