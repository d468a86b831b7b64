"""What imports what, read from the source: type-only imports and those inside functions count like any other."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

import jointquant

PACKAGE = "jointquant"
ROOT = Path(jointquant.__file__).parent

Graph = Mapping[str, frozenset[str]]


def files(root: Path = ROOT) -> dict[str, Path]:
    """Every module by its dotted name below the package; a folder's ``__init__`` has the folder's name."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(path: Path, known: Iterable[str]) -> frozenset[str]:
    """The modules among ``known`` that a file imports; for the package itself ``__init__``."""
    known = frozenset(known)
    return frozenset(_module(name, known) for name in _names(ast.parse(path.read_text(encoding="utf-8"))))


def _names(tree: ast.Module) -> Iterator[str]:
    """Full names of what is imported from the package: of a module, or of something in one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == PACKAGE)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno} imports by a relative path, expected {PACKAGE}.…"
            if node.module and node.module.split(".")[0] == PACKAGE:
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _module(name: str, known: frozenset[str]) -> str:
    """The longest beginning of a name that is a module."""
    parts = name.split(".")[1:]
    while parts and ".".join(parts) not in known:
        parts.pop()
    return ".".join(parts) or "__init__"


@cache
def graph(root: Path = ROOT) -> Graph:
    """Every module, and what it imports."""
    modules = files(root)
    return {name: imports_of(path, modules) for name, path in modules.items()}


def reached(start: Iterable[str], graph: Graph) -> set[str]:
    """What ``start`` imports, at one remove or many, with ``start``."""
    found, open_ends = set(), list(start)
    while open_ends:
        name = open_ends.pop()
        if name not in found:
            found.add(name)
            open_ends.extend(graph[name])
    return found


def circles(graph: Graph) -> list[list[str]]:
    """Groups of modules that import each other, directly or through others."""
    behind = {name: reached(graph[name], graph) for name in graph}
    inside = {name: sorted(other for other in behind[name] if name in behind[other]) for name in graph}
    return sorted({tuple(group): group for group in inside.values() if group}.values())
