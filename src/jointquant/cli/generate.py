"""The verb ``generate``."""

from __future__ import annotations

from typing import Annotated

import typer

from jointquant.cli.options import (
    AllowPickleOption,
    DeviceOption,
    DtypeOption,
    HubOption,
    JsonOption,
    NoVerifyOption,
    RevisionOption,
    RunnableArgument,
    digests_of,
)
from jointquant.cli.output import finish, shown_progress
from jointquant.models.options import ModelOptions


def generate(
    model: RunnableArgument,
    prompt: Annotated[str, typer.Option(help="What the text begins with, or what a chat model is asked.")],
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to add.")] = 64,
    temperature: Annotated[float, typer.Option(min=0.0, help="0: always the likeliest token.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of the sampling.")] = 0,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the prompt as it is, without a chat template.")] = False,
    revision: RevisionOption = None,
    hub: HubOption = "hf",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    allow_pickle: AllowPickleOption = False,
    no_verify: NoVerifyOption = False,
    as_json: JsonOption = False,
) -> None:
    """Continue a prompt with a model or an artifact, or answer it where the tokenizer has a chat template."""
    from jointquant.cli.given import check_given

    check_given((model,), ())
    from jointquant.runtime.generation import generate_text

    options = ModelOptions(revision=revision, hub=hub, device=device, dtype=dtype, allow_pickle=allow_pickle)
    options["digests"] = digests_of(no_verify)
    result = generate_text(
        model,
        prompt,
        max_new_tokens,
        temperature,
        seed,
        raw=raw,
        on_text=None if as_json else _print,
        progress=shown_progress(),
        **options,
    )
    if not as_json:
        print()
    if result.ignored:
        typer.echo(f"of the model's generation settings, {', '.join(result.ignored)} are not used here", err=True)
    if result.second_form_bytes:
        megabytes = result.second_form_bytes / 1e6
        typer.echo(
            f"kernels keep {megabytes:.0f} MB of weights in forms of their own, besides the artifact's", err=True
        )
    finish(result.to_dict(), as_json)


def _print(piece: str) -> None:
    """Show text as it comes."""
    print(piece, end="", flush=True)
