"""The verb ``verify``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jointquant.cli.options import DeviceOption, JsonOption, NoVerifyOption, digests_of
from jointquant.cli.output import finish, show
from jointquant.errors import require, unknown
from jointquant.verification.words import RUNTIMES, is_url


def verify(
    subject: Annotated[
        str, typer.Argument(metavar="PATH|URL", help="An artifact, an export, a GGUF file, or a server's URL.")
    ],
    runtime: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|URL",
            help="transformers, llama.cpp, vllm, or the URL of a server (default: llama.cpp for a GGUF file, else "
            "transformers).",
        ),
    ] = None,
    fingerprint: Annotated[
        Path | None,
        typer.Option(help="What carries the fingerprint, where it is not PATH: a folder, a GGUF file, a .json."),
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="What transformers or vLLM computes in, or a server was started with: auto, float32 …")
    ] = "auto",
    device: DeviceOption = "auto",
    model: Annotated[str | None, typer.Option(help="Which model of a server (default: the first it names).")] = None,
    no_verify: NoVerifyOption = False,
    as_json: JsonOption = False,
) -> None:
    """Does a runtime compute what the quantizing process did? Passes, or names the known fault that fits.

    Every artifact and export carries a fingerprint: what it is to predict on a fixed text, and what it would predict
    with each of the known faults, such as a rotation that is dropped, transposed, or applied twice. Exit status 2: it
    does not pass.

    Example: jointquant verify ./for-vllm --runtime http://localhost:8000
    """
    require(
        runtime is None or runtime in RUNTIMES or is_url(runtime), unknown("runtime", str(runtime), [*RUNTIMES, "URL"])
    )
    require(not is_url(subject) or runtime is None, f"{subject} is the server: expected no --runtime beside it")
    require(is_url(subject) or Path(subject).exists(), f"no such artifact or export: {subject}")
    from rich.table import Table

    from jointquant import verify as run

    found = run(
        subject,
        runtime=runtime,
        fingerprint=fingerprint,
        dtype=dtype,
        device=device,
        model=model,
        digests=digests_of(no_verify),
    )
    table = Table(show_header=False, title=f"{subject} in {found.runtime}")
    table.add_row("verdict", "pass" if found.passed else "fails")
    for words in found.words:
        table.add_row("fault", words)
    table.add_row("log-probabilities differ by", f"{found.difference:.3g} (let pass: {found.tolerance:.3g})")
    table.add_row("it rounds as", found.arithmetic)
    if found.not_asked:
        table.add_row("it cannot be asked for", ", ".join(found.not_asked).replace("_", " "))
    show(table, as_json)
    finish(found.to_dict(), as_json)
    if not found.passed:
        raise typer.Exit(2)
