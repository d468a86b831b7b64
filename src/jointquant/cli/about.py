"""The verbs that tell what there is: ``demo``, ``recipes``, ``models``, ``doctor``."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from jointquant.cli.options import (
    JsonOption,
)
from jointquant.cli.output import finish, show, shown_progress
from jointquant.errors import require


def demo(
    out: Annotated[
        Path | None, typer.Option(help="Keep the artifacts in this new folder (default: a temporary one).")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The first of the seeds.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """The whole story on the embedded model, offline: five recipes at W4A4KV4, one table."""
    from rich.table import Table

    from jointquant.demo.story import run_demo

    rows = run_demo(out, seed, shown_progress())
    title = "embedded model, held-out text; mean over seeds"
    table = Table("recipe", "perplexity", "min – max", "size (MB)", "seconds", title=title)
    for row in rows:
        spread = f"{row.perplexity_min:.2f} – {row.perplexity_max:.2f} ({row.seeds})" if row.seeds > 1 else ""
        size, seconds = f"{row.size_bytes / 1e6:.2f}", f"{row.seconds:.1f}"
        table.add_row(row.recipe, f"{row.perplexity:.2f}", spread, size, seconds)
    show(table, as_json)
    finish({"rows": [row.to_dict() for row in rows]}, as_json)


def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this recipe in full, as YAML.")] = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema of recipes, for editors and checks.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """The recipes and sizes there are; with a name, all settings of a recipe."""
    require(name is None or not schema, f"--schema is of all recipes: expected no name, got {name}")
    if schema:
        _show_schema(as_json)
    elif name is not None:
        _show_recipe(name, as_json)
    else:
        _list_recipes(as_json)


def _show_schema(as_json: bool) -> None:
    from jointquant.recipe.recipe import Recipe

    print(json.dumps(Recipe.model_json_schema(), indent=None if as_json else 2))


def _show_recipe(name: str, as_json: bool) -> None:
    import yaml

    from jointquant.recipe.recipe import load_recipe

    data = load_recipe(name).model_dump(mode="json")
    if not as_json:
        print(yaml.safe_dump(data, sort_keys=False).rstrip())
    finish(data, as_json)


def _list_recipes(as_json: bool) -> None:
    from rich.table import Table

    from jointquant.recipe.catalogue import description_of, preset_names
    from jointquant.recipe.sizes import read_size, size_names

    presets = {preset: description_of(preset) for preset in preset_names()}
    table = Table("recipe", "what it does", title="jointquant recipes NAME prints one in full")
    for preset, description in presets.items():
        table.add_row(preset, description)
    show(table, as_json)
    sizes = {size: read_size(size)["description"] for size in size_names()}
    table = Table("size", "for models of", title="jointquant quantize --size NAME")
    for size, description in sizes.items():
        table.add_row(size, description)
    show(table, as_json)
    finish({"recipes": presets, "sizes": sizes}, as_json)


def models(as_json: JsonOption = False) -> None:
    """The model families there are, what works for each, and why something does not."""
    from rich.table import Table

    from jointquant.models.registry import ARCHITECTURES, summary
    from jointquant.models.support import COLUMNS, reasons, support_of

    families = {model_type: summary(model_type) for model_type in sorted(ARCHITECTURES)}
    support = {model_type: support_of(ARCHITECTURES[model_type]) for model_type in families}
    table = Table("model_type", *COLUMNS, "what is special")
    for model_type, words in families.items():
        table.add_row(model_type, *(each.word for each in support[model_type].values()), words)
    show(table, as_json)
    if not as_json:
        print("\n".join(reasons(ARCHITECTURES)))
    plain = {name: {what: asdict(each) for what, each in found.items()} for name, found in support.items()}
    finish({"models": families, "support": plain}, as_json)


def doctor(as_json: JsonOption = False) -> None:
    """What this machine can do: each device's dtypes, linear algebra, precision, speed and memory, measured now."""
    from rich.table import Table

    from jointquant.planning.doctor import examine, in_words

    findings = examine()
    table = Table("what", "found", title="this machine")
    for what, found in in_words(findings):
        table.add_row(what, found)
    show(table, as_json)
    finish({"findings": findings}, as_json)
