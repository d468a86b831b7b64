"""What can name a model: a folder, or an id of a hub."""

from __future__ import annotations

import os
import re
from pathlib import Path

from jointquant.errors import require

REPOSITORY_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
EXPECTED = "a folder with config.json and safetensors, or a hub id owner/name"


def may_be_id(model: str) -> bool:
    """Whether a name that is no local folder can be a hub id: one slash, and none of the signs of a path."""
    return bool(REPOSITORY_ID.fullmatch(model.partition("@")[0]))


def check_model_name(model: str | Path) -> None:
    """Raises InputError for what is neither a folder that is there nor the form of a hub id."""
    if os.path.isdir(model):
        return
    require(not os.path.exists(model), f"model {model} is a file: expected {EXPECTED}")
    require(isinstance(model, str) and may_be_id(model), f"no such model: {str(model)[:200]} (expected {EXPECTED})")
