"""What tables of the docs have in common."""

from __future__ import annotations

from typing import Any


def headed(heads: list[str]) -> list[str]:
    """The first two lines of a table; a head may be empty."""
    return [f"|{'|'.join(f' {head} ' if head else ' ' for head in heads)}|", "|-" * len(heads) + "|"]


def made(result: dict[str, Any]) -> str:
    """Where and when a result was made."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return f"{result['date']}, {result['machine']}, {versions}."
