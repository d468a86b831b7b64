"""JSON of others: bounded, without repeated keys, and without the numbers that JSON does not have."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jointquant.errors import InputError
from jointquant.trust.files import read_bytes

LIMIT = 16 << 20
"""Bytes of an index, a configuration or a header: the largest known ones have a fifth of it."""


def read_object(path: Path, limit: int = LIMIT) -> dict[str, Any]:
    """The JSON object that a file holds. Raises InputError for anything else."""
    return parse_object(read_bytes(path, limit), str(path))


def parse_object(data: bytes, what: str) -> dict[str, Any]:
    """The JSON object that ``data`` is.

    Args:
        data: UTF-8.
        what: where it comes from, for messages.

    Raises:
        InputError: no JSON, no object, a key twice in one object, NaN or Infinity, nested too deeply.
    """
    try:
        parsed = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_without_repeats,
            parse_constant=_refuse_constant,
            parse_float=_finite,
        )
    except RecursionError:
        raise InputError(f"{what} is nested too deeply: expected JSON of a few levels") from None
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError, numbers of thousands of digits, and ours
        raise InputError(f"{what} is not valid JSON: {error}") from None
    if not isinstance(parsed, dict):
        raise InputError(f"{what} holds a JSON {type(parsed).__name__}: expected an object")
    return parsed


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"key {first_repeated(key for key, _ in pairs)[:100]!r} stands twice in an object")
    return found


def first_repeated(keys: Iterable[str]) -> str:
    """The first key that stands there more than once; empty where there is none."""
    return next((key for key, count in Counter(keys).items() if count > 1), "")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number in JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError(f"{digits[:40]} is larger than any float")
    return number
