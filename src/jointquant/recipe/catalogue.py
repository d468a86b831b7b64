"""The recipes that come with the package: the YAML files in ``presets/``."""

from __future__ import annotations

from pathlib import Path

from jointquant.trust.strict_yaml import parse_yaml

PRESETS = Path(__file__).parent / "presets"


def preset_names() -> list[str]:
    """Their names."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def description_of(name: str) -> str:
    """What one of them does, in the first line of its file: to read all of all files takes longer than to answer."""
    with open(PRESETS / f"{name}.yaml", encoding="utf-8") as lines:
        return str(parse_yaml(lines.readline(), f"recipe {name}")["description"])
