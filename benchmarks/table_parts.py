"""What tables of the docs have in common."""

from __future__ import annotations

from typing import Any


def headed(heads: list[str]) -> list[str]:
    """The first two lines of a table; a head may be empty."""
    return [f"|{'|'.join(f' {head} ' if head else ' ' for head in heads)}|", "|-" * len(heads) + "|"]


def made(result: dict[str, Any]) -> str:
    """Where and when a result was made, and those of its rows by recipe that say so themselves: made anew later."""
    rows = result.get("rows")
    own = [row for row in rows if "date" in row] if isinstance(rows, list) else []
    later: dict[str, list[str]] = {}
    for row in own:
        names = later.setdefault(_made(row), [])
        if row["recipe"] not in names:
            names.append(row["recipe"])
    return "".join([_made(result), *(f" Rows of {', '.join(names)}: {said}" for said, names in later.items())])


def _made(result: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return f"{result['date']}, {result['machine']}, {versions}."
