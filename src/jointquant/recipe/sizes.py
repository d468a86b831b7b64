"""Presets by model size: how much is sampled, and what a training step sees; the YAML files in ``recipes/sizes/``.

A size changes how much, never what: it joins any recipe, and touches a rotation only where the recipe learns one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from jointquant.errors import require, unknown

SIZES = Path(__file__).parent / "presets" / "sizes"


def size_names() -> list[str]:
    """The sizes there are, the smallest first."""
    return sorted((path.stem for path in SIZES.glob("*.yaml")), key=lambda name: float(name.removesuffix("B")))


def read_size(name: str) -> dict[str, Any]:
    """The settings of one size, and its description. Raises InputError for an unknown size."""
    require(name in size_names(), unknown("size", name, size_names()))
    return dict(yaml.safe_load((SIZES / f"{name}.yaml").read_text(encoding="utf-8")))


def apply_size(data: dict[str, Any], name: str) -> None:
    """Put a size's settings into the plain data of a recipe, in place."""
    size = read_size(name)
    for part in ("calibration", "rotations"):
        require(isinstance(data.setdefault(part, {}), dict), f"recipe: {part} must be a mapping, got {data[part]!r}")
    data["calibration"].update(size["calibration"])
    for rotation, settings in size["rotations"].items():
        asked = data["rotations"].get(rotation)
        if isinstance(asked, dict) and asked.get("kind") in ("learned", "butterfly"):
            asked.update(settings)
