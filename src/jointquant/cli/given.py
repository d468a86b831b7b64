"""What a verb was given, checked before anything slow is imported: all that is wrong with it is told at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from jointquant.errors import check_all
from jointquant.recipe.recipe import Recipe
from jointquant.text.names import check_source
from jointquant.trust.model_name import check_model_name


def checked_recipes(
    model: str, load: Callable[[], list[Recipe]], texts: Iterable[str] = (), calib: str | None = None
) -> list[Recipe]:
    """The recipes that ``load`` gives.

    Args:
        model: the model that they are for.
        load: reads them.
        texts: sources that are read besides.
        calib: the source that they calibrate on, where it was given beside them.

    Raises:
        SeveralFaultsError: no such recipe, setting, model or text file.
    """
    recipes: list[Recipe] = []
    sources = [*texts, *([] if calib is None else [calib])]
    named = [partial(check_source, source) for source in sources]
    check_all(partial(check_model_name, model), *named, lambda: recipes.extend(load()))
    check_all(*(partial(check_source, recipe.calibration.source) for recipe in recipes))
    return recipes


def check_given(models: Iterable[str | None], texts: Iterable[str]) -> None:
    """Raises SeveralFaultsError for models and texts that are not there; None: none was given."""
    names = [partial(check_model_name, model) for model in models if model is not None]
    check_all(*names, *(partial(check_source, text) for text in texts))
