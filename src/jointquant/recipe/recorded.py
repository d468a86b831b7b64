"""What files say of a recipe: settings that came later stand there only where they are used.

So a version with more settings reads, and writes, what an earlier one wrote. A setting that is not at its default is
always there: an earlier version refuses it as an unknown key, and no digest is the same without it.
"""

from __future__ import annotations

from typing import Any

from jointquant.recipe.settings import LATER, Settings


def recorded(settings: Settings) -> dict[str, Any]:
    """Plain data of a recipe, or of a part of it, without the fields marked ``LATER`` that have their default value."""
    data = settings.model_dump(mode="json")
    for name, field in type(settings).model_fields.items():
        key, value = field.alias or name, getattr(settings, name)
        if isinstance(value, Settings):
            data[key] = recorded(value)
        elif LATER in field.metadata and value == field.default:
            del data[key]
    return data
