"""Every key of a recipe, as ``--set`` takes it: its default, and the values it takes."""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo


@dataclass(frozen=True)
class Key:
    """One key, as ``--set`` takes it."""

    name: str
    default: Any
    takes: str


def keys_of(model: type[BaseModel], prefix: str = "") -> Iterator[Key]:
    """The keys of a part of a recipe, in its order; of a rotation, those of its richest kind."""
    for name, field in model.model_fields.items():
        path = f"{prefix}{field.alias or name}"
        parts = [part for part in _members(field.annotation) if _is_settings(part)]
        if not parts:
            yield Key(path, field.get_default(call_default_factory=True), _takes(field))
            continue
        richest = max(parts, key=lambda part: len(part.model_fields))
        if len(parts) > 1:
            kinds = [part.model_fields["kind"].default for part in parts]
            yield Key(f"{path}.kind", field.get_default().kind, " | ".join(kinds))
        yield from (key for key in keys_of(richest, f"{path}.") if key.name != f"{path}.kind")


def _is_settings(annotation: Any) -> bool:
    return inspect.isclass(annotation) and issubclass(annotation, BaseModel)


def _members(annotation: Any) -> list[Any]:
    """The alternatives of a union, else the annotation itself."""
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [member for part in get_args(annotation) for member in _members(part)]
    return [annotation]


def _takes(field: FieldInfo) -> str:
    """The values that a field takes."""
    members = _members(field.annotation)
    words = [word for member in members if member is not type(None) for word in _words(member)]
    bounds = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    limits = [
        f"{sign} {getattr(source, bound):g}"
        for source in field.metadata
        for bound, sign in bounds.items()
        if hasattr(source, bound)
    ]
    null = ["null"] if type(None) in members else []
    return " | ".join([*([", ".join([words[0], *limits])] if limits else words), *null])


def _words(annotation: Any) -> list[str]:
    """A type in words."""
    if get_origin(annotation) is Literal:
        return [str(value) for value in get_args(annotation)]
    names = {bool: "true | false", int: "integer", float: "number", str: "text"}
    return [names.get(annotation, "list" if get_origin(annotation) is tuple else "mapping")]
