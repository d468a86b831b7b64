"""What is wrong with settings, in words: the key, what was expected, what arrived."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from jointquant.errors import near, printable, unknown

KINDS = ("none", "hadamard", "learned", "butterfly")
"""Of rotations: what pydantic puts between a rotation's key and the keys below it."""
ALONE = {"butterfly": "rotations.r4"}
"""Kinds that one rotation has, and no other."""


def describe(error: ValidationError) -> str:
    """One line for the first thing that is wrong."""
    first, *others = faults(error)
    return f"{first} (and {len(others)} more)" if others else first


def faults(error: ValidationError, keys: Sequence[str] = ()) -> list[str]:
    """One line for each thing that is wrong; ``keys`` are those that there are, where an unknown one may be meant."""
    return [_words(each, keys) for each in error.errors()]


def _words(fault: Any, keys: Sequence[str]) -> str:
    key = ".".join(str(part) for part in fault["loc"] if part not in KINDS) or "recipe"
    if fault["type"] == "extra_forbidden":
        return printable(unknown("key", key, _beside(key, keys)) if keys else f"unknown key {key!r}", 300)
    message, got, context = fault["msg"].removeprefix("Value error, "), fault["input"], fault.get("ctx", {})
    if fault["type"] == "union_tag_invalid":
        key, got = f"{key}.kind", context["tag"]
    if fault["type"] in ("literal_error", "union_tag_invalid"):
        names = re.findall(r"'([^']*)'", context.get("expected") or context["expected_tags"])
        message = f"expected one of {', '.join(names)}{near(str(got), names)}"
    if fault["type"] == "union_tag_not_found":
        own = ", ".join(kind for kind in KINDS if ALONE.get(kind, key) == key)
        message = f"a rotation's settings need its kind beside them, expected {key}.kind to be one of {own}"
    return printable(
        f"{key}: {message}" if isinstance(got, (dict, BaseModel)) else f"{key}: {message}, got {got!r}", 300
    )


def _beside(key: str, keys: Sequence[str]) -> list[str]:
    """The keys that there are below the same parent; all parts of a recipe where there is no such parent."""
    parent = key.rpartition(".")[0]
    prefix = f"{parent}." if parent else ""
    below = [name.removeprefix(prefix) for name in keys if name.startswith(prefix)]
    return list(dict.fromkeys(prefix + name.partition(".")[0] for name in below))
