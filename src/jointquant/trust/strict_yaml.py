"""YAML of others: plain data of a bounded size, without aliases, tags of programs, or repeated keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from jointquant.errors import InputError
from jointquant.trust.files import read_text
from jointquant.trust.strict_json import first_repeated

LIMIT = 1 << 18
MAX_DEPTH = 50


class StrictLoader(yaml.SafeLoader):
    """A safe loader that refuses aliases (a few lines of them stand for billions), repeated keys and deep nesting."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """One value, counted by how deep it lies."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not taken")
        if self.depth >= MAX_DEPTH:
            raise yaml.YAMLError(f"nested deeper than {MAX_DEPTH} levels")
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping whose keys are all different."""
        repeated = first_repeated(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        if repeated:
            raise yaml.YAMLError(f"key {repeated[:100]!r} stands twice in a mapping")
        return super().construct_mapping(node, deep)


def parse_yaml(text: str, what: str) -> Any:
    """The plain data that ``text`` is. Raises InputError, naming ``what``, for anything else."""
    if len(text) > LIMIT:
        raise InputError(f"{what}: {len(text)} characters, expected at most {LIMIT}")
    try:
        return yaml.load(text, StrictLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: dates and numbers that are none
        raise InputError(f"{what}: not readable as YAML ({' '.join(str(error).split())[:200]})") from None


def read_yaml(path: Path, what: str) -> Any:
    """The plain data of a YAML file. Raises InputError, naming ``what``, when it cannot be had."""
    return parse_yaml(read_text(path, LIMIT), what)
