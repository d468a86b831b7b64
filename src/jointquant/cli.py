"""The command line: each verb calls one function of the API."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from jointquant.devices import DEVICE_HELP
from jointquant.errors import InputError, printable, require
from jointquant.ranks import leads, started_by_torchrun

if TYPE_CHECKING:
    from jointquant import EvaluationResult

app = typer.Typer(
    name="jointquant",
    help="Quantize causal language models to INT4 (weights, activations, KV cache) with calibrated rotations.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

# The base of all usage errors; typer carries its own copy of click, so it is reached through a public subclass.
UsageProblem: type[Exception] = next(b for b in typer.BadParameter.__mro__ if b.__name__ == "ClickException")

INTERRUPTED = 130

ModelArgument = Annotated[
    str, typer.Argument(help="A model folder (config.json, safetensors, tokenizer.json), or a hub id.")
]
RunnableArgument = Annotated[
    str, typer.Argument(help="A model folder, a hub id, or an artifact that `quantize` wrote.")
]
RevisionOption = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id (also: owner/name@tag).")]
HubOption = Annotated[Literal["hf", "modelscope"], typer.Option(help="The hub that ids belong to.")]
DeviceOption = Annotated[str, typer.Option(help=DEVICE_HELP)]
DtypeOption = Annotated[
    str,
    typer.Option(help="What layers compute in: auto (float32 on the CPU, else the stored dtype), float32, bfloat16 …"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line of standard output.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change one setting of the recipe, e.g. weights.num_bits=8. Repeatable."
    ),
]
OverwriteOption = Annotated[bool, typer.Option(help="Replace an earlier output in the output folder.")]
MemoryOption = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Memory this process may use, e.g. 16GB (default: what is free).")
]
CalibOption = Annotated[
    str | None, typer.Option(help="Calibration text: wikitext2, c4, ptb, hub:NAME[:CONFIG[:SPLIT[:FIELD]]], or a file.")
]
SamplesOption = Annotated[int | None, typer.Option(help="Calibration windows.")]
SeqlenOption = Annotated[int | None, typer.Option(help="Tokens of a calibration window.")]
SeedOption = Annotated[int | None, typer.Option(min=0, help="Seed of every random choice.")]
AllowPickleOption = Annotated[bool, typer.Option("--allow-pickle", help="Read a folder's pytorch_model.bin.")]


@app.command()
def demo(
    out: Annotated[
        Path | None, typer.Option(help="Keep the artifacts in this new folder (default: a temporary one).")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The first of the seeds.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """The whole story on the embedded model, offline: five recipes at W4A4KV4, one table."""
    from jointquant.demo.story import run_demo

    rows = run_demo(out, seed, _progress())
    title = "embedded model, held-out text; mean over seeds"
    table = Table("recipe", "perplexity", "min – max", "size (MB)", "seconds", title=title)
    for row in rows:
        spread = f"{row.perplexity_min:.2f} – {row.perplexity_max:.2f} ({row.seeds})" if row.seeds > 1 else ""
        size, seconds = f"{row.size_bytes / 1e6:.2f}", f"{row.seconds:.1f}"
        table.add_row(row.recipe, f"{row.perplexity:.2f}", spread, size, seconds)
    _print(table, as_json)
    _finish({"rows": [row.to_dict() for row in rows]}, as_json)


@app.command(name="eval")
def evaluate(
    model: RunnableArgument,
    text: Annotated[
        list[str] | None,
        typer.Option(
            help="Text: wikitext2, c4, ptb, hub:NAME…, or a file. Repeatable. Default: wikitext2, or none with --tasks."
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="The unquantized model: also measure how far MODEL's predictions are from its (KL divergence).",
        ),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="Tasks of lm-eval, or task files (.yaml), separated by commas."),
    ] = None,
    num_fewshot: Annotated[
        int | None, typer.Option(min=0, help="Solved examples before each question (default: what the task says).")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use only so many questions of each task.")] = None,
    seqlen: Annotated[int | None, typer.Option(help="Tokens of a window (default: 2048 or the model's limit).")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=2, help="Use only so many tokens of each text.")] = None,
    revision: RevisionOption = None,
    hub: HubOption = "hf",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    memory_budget: MemoryOption = None,
    kernels: Annotated[
        Literal["reference", "auto"],
        typer.Option(help="Of an artifact: reference gives the same figures everywhere, auto runs the fastest."),
    ] = "reference",
    allow_pickle: AllowPickleOption = False,
    card: Annotated[bool, typer.Option("--card", help="Write the perplexities into the model card of MODEL.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Perplexity of a model or an artifact (windows without overlap, T − 1 predictions each), and scores on tasks.

    Example: jointquant eval ./llama-int4 --reference meta-llama/Llama-3.2-1B --text wikitext2
    """
    from jointquant import evaluate as run
    from jointquant.card import check_carded, record_perplexity

    if card:
        require(max_tokens is None, "--card is for perplexities of whole texts: expected no --max-tokens")
        require(bool(text) or tasks is None, "--card is for perplexities: expected some --text beside --tasks")
        check_carded(Path(model), text or ())
    result = run(
        model,
        tuple(text) if text else None,
        reference=reference,
        tasks=() if tasks is None else tuple(name.strip() for name in tasks.split(",")),
        num_fewshot=num_fewshot,
        limit=limit,
        revision=revision,
        hub=hub,
        seqlen=seqlen,
        max_tokens=max_tokens,
        device=device,
        dtype=dtype,
        memory_budget=memory_budget,
        kernels=kernels,
        allow_pickle=allow_pickle,
        progress=_progress(),
    )
    if card and leads():
        record_perplexity(Path(model), result.perplexity, result.seqlen)
    if result.perplexity:
        _print(_text_table(model, result), as_json)
    if result.tasks:
        _print(_task_table(model, result.tasks), as_json)
    _finish(result.to_dict(), as_json)


@app.command()
def generate(
    model: RunnableArgument,
    prompt: Annotated[str, typer.Option(help="What the text begins with.")],
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to add.")] = 64,
    temperature: Annotated[float, typer.Option(min=0.0, help="0: always the likeliest token.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of the sampling.")] = 0,
    revision: RevisionOption = None,
    hub: HubOption = "hf",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    allow_pickle: AllowPickleOption = False,
    as_json: JsonOption = False,
) -> None:
    """Continue a prompt with a model or an artifact."""
    from jointquant.generation import generate_text

    options: dict[str, Any] = {"revision": revision, "hub": hub, "allow_pickle": allow_pickle, "progress": _progress()}
    result = generate_text(model, prompt, max_new_tokens, temperature, seed, device, dtype, **options)
    if not as_json:
        typer.echo(result.text)
    _finish(result.to_dict(), as_json)


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this recipe in full, as YAML.")] = None,
    as_json: JsonOption = False,
) -> None:
    """The recipes and sizes there are; with a name, all settings of a recipe."""
    import yaml

    from jointquant.recipe import load_recipe, preset_names
    from jointquant.sizes import read_size, size_names

    if name is not None:
        data = load_recipe(name).model_dump(mode="json")
        if not as_json:
            typer.echo(yaml.safe_dump(data, sort_keys=False).rstrip())
        _finish(data, as_json)
        return
    presets = {preset: load_recipe(preset).description for preset in preset_names()}
    table = Table("recipe", "what it does", title="jointquant recipes NAME prints one in full")
    for preset, description in presets.items():
        table.add_row(preset, description)
    _print(table, as_json)
    sizes = {size: read_size(size)["description"] for size in size_names()}
    table = Table("size", "for models of", title="jointquant quantize --size NAME")
    for size, description in sizes.items():
        table.add_row(size, description)
    _print(table, as_json)
    _finish({"recipes": presets, "sizes": sizes}, as_json)


@app.command()
def models(as_json: JsonOption = False) -> None:
    """The model families there are."""
    from jointquant.models.registry import ARCHITECTURES, summary

    families = {model_type: summary(model_type) for model_type in sorted(ARCHITECTURES)}
    table = Table("model_type", "what is special")
    for model_type, words in families.items():
        table.add_row(model_type, words)
    _print(table, as_json)
    _finish({"models": families}, as_json)


@app.command()
def doctor(as_json: JsonOption = False) -> None:
    """What this machine can do: each device's dtypes, linear algebra, precision, speed and memory, measured now."""
    from jointquant.doctor import examine, in_words

    findings = examine()
    table = Table("what", "found", title="this machine")
    for what, found in in_words(findings):
        table.add_row(what, found)
    _print(table, as_json)
    _finish({"findings": findings}, as_json)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 2 the input is at fault, 130 interrupted, 1 a defect of ours."""
    import jointquant.cli_export
    import jointquant.cli_hub
    import jointquant.cli_laboratory
    import jointquant.cli_quantize  # noqa: F401 (all add verbs)

    _be_quiet()
    if started_by_torchrun():
        from jointquant.cli_ranks import main_of_rank

        main_of_rank(sys.argv[1:] if arguments is None else arguments)
    try:
        status = run(arguments)
    except (InputError, UsageProblem) as error:
        print(as_line(error), file=sys.stderr)
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort):
        status = INTERRUPTED
    if status == INTERRUPTED:
        print("interrupted", file=sys.stderr)
    sys.exit(status)


def run(arguments: list[str] | None) -> int:
    """Run a command line; returns its exit status. Raises what goes wrong."""
    command = typer.main.get_command(app)
    status = command.main(args=arguments, prog_name="jointquant", standalone_mode=False)
    return status if isinstance(status, int) else 0


def as_line(error: Exception) -> str:
    """What the user is told about an error that the input is at fault for."""
    message = error.format_message() if hasattr(error, "format_message") else str(error)
    return f"error: {printable(message)}"


def _text_table(model: str, result: EvaluationResult) -> Table:
    """One row a text; how far the predictions are from the reference's, where there is one."""
    columns = ("KL divergence", "99 % of tokens below", "same top token") if result.divergence else ()
    table = Table("text", "perplexity", *columns, title=f"{model}, windows of {result.seqlen}")
    for source, value in result.perplexity.items():
        found = result.divergence.get(source)
        beside = []
        if found is not None:
            error = "" if found.stderr is None else f" ± {found.stderr:.5f}"
            beside = [f"{found.mean:.5f}{error}", f"{found.p99:.4f}", f"{found.same_top:.2%}"]
        table.add_row(source, f"{value:.4f}", *beside)
    return table


def _task_table(model: str, tasks: dict[str, dict[str, float]]) -> Table:
    """One row a metric, with its standard error where it has one."""
    table = Table("task", "metric", "value", "± standard error", title=model)
    for task, values in tasks.items():
        for metric, value in values.items():
            name, comma, answers = metric.partition(",")
            if not name.endswith("_stderr"):
                error = values.get(f"{name}_stderr{comma}{answers}")
                table.add_row(task, metric, f"{value:.4f}", "" if error is None else f"{error:.4f}")
    return table


def _progress() -> Any:
    from jointquant.progress import Silent, default_progress

    return default_progress() if leads() else Silent()


def _be_quiet() -> None:
    """Progress is ours to show: silence the libraries' own bars and advice."""
    import os

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    from huggingface_hub.utils import logging as hub_logging
    from huggingface_hub.utils.tqdm import disable_progress_bars
    from transformers.utils import logging

    logging.disable_progress_bar()
    disable_progress_bars()
    hub_logging.set_verbosity_error()


def _print(table: Table, to_stderr: bool) -> None:
    """Tables are for people: standard output, or standard error when that belongs to JSON. One rank prints."""
    if leads():
        Console(stderr=to_stderr).print(table)


def _finish(result: dict[str, Any], as_json: bool) -> None:
    if as_json and leads():
        print(json.dumps(_finite(result), ensure_ascii=False, allow_nan=False), flush=True)


def _finite(data: Any) -> Any:
    """Plain data as JSON has it: a number that is none, or infinite, is null."""
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
