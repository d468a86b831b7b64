"""The file that describes a family: an architecture as the code that makes it."""

from __future__ import annotations

from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from jointquant.models.architecture import Architecture

WIDTH = 110


def data_file(architecture: Architecture) -> str:
    """The text of ``models/<model_type>.py``: what differs from Llama."""
    used: dict[str, set[str]] = {}
    code = _code(architecture, used, 0)
    imports = [f"from {module} import {', '.join(sorted(names))}" for module, names in sorted(used.items())]
    return "\n".join(
        [
            f'"""{architecture.model_type}: say in a sentence what is special."""',
            "",
            *imports,
            "",
            f"ARCHITECTURE = {code}",
            "",
        ]
    )


def _code(value: Any, used: dict[str, set[str]], depth: int) -> str:
    """A value as an expression; what it needs is entered in ``used``, by module."""
    if is_dataclass(value):
        used.setdefault(type(value).__module__, set()).add(type(value).__name__)
        changed = [each for each in fields(value) if getattr(value, each.name) != _default(each)]
        parts = [f"{each.name}={_code(getattr(value, each.name), used, depth + 1)}" for each in changed]
        return _call(f"{type(value).__name__}(", parts, ")", depth)
    if isinstance(value, tuple) and value:
        parts = [_code(each, used, depth + 1) for each in value]
        return _call("(", parts, ",)" if len(parts) == 1 else ")", depth)
    return f'"{value}"' if isinstance(value, str) else repr(value)


def _default(each: Any) -> Any:
    return each.default_factory() if each.default_factory is not MISSING else each.default


def _call(start: str, parts: list[str], end: str, depth: int) -> str:
    line = f"{start}{', '.join(parts)}{end}"
    if len(line) + 4 * depth <= WIDTH and "\n" not in line:
        return line
    inner = "".join(f"{'    ' * (depth + 1)}{part},\n" for part in parts)
    return f"{start}\n{inner}{'    ' * depth}{end.removeprefix(',')}"
