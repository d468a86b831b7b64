"""The verb ``chat``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from jointquant.cli.options import (
    AllowPickleOption,
    DeviceOption,
    DtypeOption,
    HubOption,
    NoVerifyOption,
    RevisionOption,
    RunnableArgument,
    digests_of,
)
from jointquant.cli.output import as_lines, shown_progress
from jointquant.errors import InputError, require
from jointquant.models.options import ModelOptions

if TYPE_CHECKING:
    from jointquant.runtime.speaker import Sampling, Speaker

HELP = "/new forgets what was said, /exit or Ctrl-D ends"
END, FORGET = ("/exit", "/quit", "/bye"), "/new"


def chat(
    model: RunnableArgument,
    system: Annotated[str | None, typer.Option(help="What the model is told before the chat.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer, at most.")] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="0: always the likeliest token.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of the sampling.")] = 0,
    revision: RevisionOption = None,
    hub: HubOption = "hf",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    allow_pickle: AllowPickleOption = False,
    no_verify: NoVerifyOption = False,
) -> None:
    """Talk with a model or an artifact in the terminal, by its chat template. Each line is a question.

    /new forgets what was said, /exit or Ctrl-D ends.

    Example: jointquant chat ./llama-int4 --dtype bfloat16
    """
    from jointquant.cli.given import check_given

    check_given((model,), ())
    from jointquant.runtime.speaker import Sampling, Speaker

    options = ModelOptions(revision=revision, hub=hub, device=device, dtype=dtype, allow_pickle=allow_pickle)
    options["digests"] = digests_of(no_verify)
    sampling = Sampling(max_new_tokens, temperature, seed)
    sampling.check()
    speaker = Speaker.load(model, shown_progress(), **options)
    require(
        speaker.chats, f"the tokenizer of {model} has no chat template: expected one, or jointquant generate --prompt"
    )
    typer.echo(HELP, err=True)
    talk(speaker, sampling, [] if system is None else [{"role": "system", "content": system}])


def talk(speaker: Speaker, sampling: Sampling, before: list[dict[str, str]]) -> None:
    """Answer each line of standard input; a question that cannot be answered is told why, and forgotten."""
    turns = list(before)
    for question in questions():
        if question == FORGET:
            turns = list(before)
            continue
        asked = [*turns, {"role": "user", "content": question}]
        try:
            answer = speaker.answer(asked, sampling, _print)
        except InputError as error:
            print(as_lines(error), file=sys.stderr)
            continue
        print()
        turns = [*asked, {"role": "assistant", "content": answer.text}]


def questions() -> Iterator[str]:
    """Lines of standard input that say something, until it ends or the user does."""
    while True:
        if sys.stdin.isatty():
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line or line.strip() in END:
            return
        if line.strip():
            yield line.strip()


def _print(piece: str) -> None:
    """Show text as it comes."""
    print(piece, end="", flush=True)
