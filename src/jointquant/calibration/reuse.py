"""Rotations that need not be made: those of the files that a recipe names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import Tensor

from jointquant.calibration.rotation_files import read_rotations
from jointquant.calibration.training import ModelSizes
from jointquant.errors import require
from jointquant.recipe.recipe import Recipe
from jointquant.recipe.rotations import LearnedResidualRotation
from jointquant.rotations.bundle import Rotations
from jointquant.runtime.whole_artifact import check_rotations


def reusable_rotations(sizes: ModelSizes, recipe: Recipe) -> Rotations:
    """What the files that the recipe names hold of the rotations that it asks for.

    ``rotations.r1.from`` and ``rotations.r2.from`` must hold what they are named for; ``rotations.from`` may lack it,
    and counts only where the others say nothing.

    Raises:
        InputError: a file cannot be read or is not what its artifact was written with, or its rotations do not fit
            the model or the recipe.
    """
    settings = recipe.rotations
    found = {name: _of_place(name, sizes, recipe) for name in ("r1", "r2")}
    both = Rotations(found["r1"].r1, found["r2"].r2, found["r1"].traces | found["r2"].traces)
    if settings.r1.kind != "none" and both.r1:
        per_layer = isinstance(settings.r1, LearnedResidualRotation) and settings.r1.per_layer
        count = sizes.num_layers if per_layer else 1
        _check_shapes("r1", both.r1, count, (sizes.hidden_size, sizes.hidden_size), recipe)
    if settings.r2.kind != "none" and both.r2:
        shape = (sizes.num_key_value_heads, sizes.head_dim, sizes.head_dim)
        _check_shapes("r2", both.r2, sizes.num_layers, shape, recipe)
    return both


def _of_place(name: str, sizes: ModelSizes, recipe: Recipe) -> Rotations:
    """R1 alone, or the R2s alone, with what is known of their training."""
    rotation = getattr(recipe.rotations, name)
    key, source = _source(name, recipe)
    if source is None:
        return Rotations()
    check_rotations(Path(source))
    stored = read_rotations(Path(source), name, sizes)
    if rotation.kind == "none":  # what was named is checked all the same
        return Rotations()
    stored = replace(stored, r2=()) if name == "r1" else replace(stored, r1=())
    used = stored.tensors()
    require(bool(used) or key == "rotations.from", f"{key} {source} holds no {name.upper()}: expected a file with one")
    return replace(stored, traces={tensor: trace for tensor, trace in stored.traces.items() if tensor in used})


def _source(name: str, recipe: Recipe) -> tuple[str, str | None]:
    """The setting that names the file of R1 or of the R2s, and the file."""
    own: str | None = getattr(getattr(recipe.rotations, name), "source", None)
    return (f"rotations.{name}.from", own) if own is not None else ("rotations.from", recipe.rotations.source)


def _check_shapes(name: str, stored: tuple[Tensor, ...], count: int, shape: tuple[int, ...], recipe: Recipe) -> None:
    key, source = _source(name, recipe)
    found = [len(stored), *stored[0].shape]
    require(
        len(stored) == count and all(rotation.shape == shape for rotation in stored),
        f"{key} {source}: {name.upper()} is {found} (number and shape), expected {[count, *shape]}",
    )
