"""What torchrun says of this process, in the environment: known without torch."""

from __future__ import annotations

import os
from collections.abc import Mapping


def started_by_torchrun(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is one of several."""
    return environment.get("WORLD_SIZE", "1").isdecimal() and int(environment.get("WORLD_SIZE", "1")) > 1


def leads(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process speaks to the user: it is alone, or the first of several."""
    return not started_by_torchrun(environment) or environment.get("RANK") == "0"
