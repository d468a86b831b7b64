"""The verb ``plan``."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from jointquant.cli.options import (
    DeviceMemoryOption,
    DeviceOption,
    DtypeOption,
    HubOption,
    JsonOption,
    MemoryOption,
    RevisionOption,
    SamplesOption,
    SeqlenOption,
    SetOption,
)
from jointquant.errors import check_all
from jointquant.models.options import ModelOptions
from jointquant.trust.model_name import check_model_name


def plan(
    config: Annotated[
        str, typer.Argument(help="A configuration file (config.json of a model), a folder that holds one, or a hub id.")
    ],
    recipe: Annotated[str, typer.Option(help="A preset (see `jointquant recipes`) or a YAML file.")] = "w4a4kv4",
    size: Annotated[
        str | None, typer.Option(help="Batch and sample sizes for a model of this size: 1B, 3B, 8B, 70B; --set wins.")
    ] = None,
    changes: SetOption = None,
    num_samples: SamplesOption = None,
    seqlen: SeqlenOption = None,
    revision: RevisionOption = None,
    hub: HubOption = "hf",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    memory_budget: MemoryOption = None,
    device_budget: DeviceMemoryOption = None,
    gpu: Annotated[str | None, typer.Option(help="Predict the time for a GPU that is not here: h100.")] = None,
    world_size: Annotated[int, typer.Option(min=1, help="Ranks that would share the run.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """What `quantize` of a model would need (memory, disk, time), from its configuration alone: no weights, no output.

    Example: jointquant plan ./config.json --recipe w4a16 --memory-budget 64GB --device-budget 80GB
    """
    from jointquant.recipe.recipe import Recipe, calibration_changes, load_recipe

    recipes: list[Recipe] = []
    given = [*(changes or []), *calibration_changes(None, num_samples, seqlen)]
    check_all(
        lambda: None if os.path.isfile(config) else check_model_name(config),
        lambda: recipes.append(load_recipe(recipe, given, size)),
    )
    from jointquant.cli.plan_table import Output, show_dry_run
    from jointquant.planning.budget import Limits

    options = ModelOptions(revision=revision, hub=hub, device=device, dtype=dtype)
    limits = Limits(memory_budget, device_budget, gpu)
    show_dry_run("quantize", config, recipes, Output(None, False, as_json), limits, options, world_size)
