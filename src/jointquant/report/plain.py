"""Plain data as JSON has it."""

from __future__ import annotations

import math
from typing import Any


def finite(data: Any) -> Any:
    """Plain data in which a number that is none, or infinite, is null."""
    if isinstance(data, dict):
        return {key: finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
