"""What quantizing layers by a recipe asks for: statistics, Hessians, and how far hidden states have to go."""

from __future__ import annotations

from collections.abc import Iterable

from jointquant.runtime.assembly import Assembly


def observes_inputs(assembly: Assembly, index: int) -> bool:
    """Whether quantizing layer ``index`` takes statistics of what its linears read."""
    names = [assembly.full_name(index, linear) for linear in assembly.layers[index].linears]
    recipe, learned = assembly.recipe, assembly.online.inner is not None
    return learned or any(
        recipe.weights_of(name).reads_inputs or recipe.activations_of(name).calibrated for name in names
    )


def rounded_linears(assembly: Assembly, index: int) -> tuple[str, ...]:
    """The linears of layer ``index`` whose weights are rounded, relative to it."""
    names = assembly.layers[index].linears
    return tuple(name for name in names if assembly.recipe.weights_of(assembly.full_name(index, name)).enabled)


def needs_hessian(assembly: Assembly, index: int, linears: Iterable[str]) -> bool:
    """Whether any of these linears of layer ``index`` is rounded with GPTQ."""
    return any(assembly.recipe.weights_of(assembly.full_name(index, linear)).reads_inputs for linear in linears)


def calibrates_cache(assembly: Assembly) -> bool:
    """Whether quantizing a layer takes statistics of its keys or values."""
    return assembly.online.keys is not None or assembly.recipe.kv_cache.centres_values


def last_reader(assembly: Assembly) -> int:
    """The last layer whose quantization asks for hidden states; their number: the head; −1: none does."""
    count, recipe = len(assembly.layers), assembly.recipe
    if recipe.head.reads_inputs:
        return count
    if recipe.refinement.enabled or calibrates_cache(assembly):
        return count - 1
    return max((index for index in range(count) if observes_inputs(assembly, index)), default=-1)
