"""The verb ``export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jointquant.cli.options import JsonOption, NoVerifyOption, digests_of
from jointquant.cli.output import finish, show, shown_progress
from jointquant.export.formats import check_format


def export(
    artifact: Annotated[Path, typer.Argument(help="A folder that `quantize` wrote.")],
    out: Annotated[Path, typer.Option(help="A new folder; a new file for gguf. It appears only when it is complete.")],
    format: Annotated[str, typer.Option("--format", help="dense, compressed-tensors, gguf or native (see below).")],
    dequantized: Annotated[
        bool, typer.Option("--dequantized", help="dense: the quantized values instead of the rotated ones.")
    ] = False,
    base: Annotated[
        str | None,
        typer.Option(help="dense without --dequantized: the model that ARTIFACT was made of (default: its hub id)."),
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="dense: float32, bfloat16, float16, or auto for the artifact's own.")
    ] = "auto",
    no_verify: NoVerifyOption = False,
    overwrite: Annotated[bool, typer.Option(help="Replace what is at OUT.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write ARTIFACT in the format of another runtime, whole or not at all.

    [bold]dense[/bold]: a plain transformers checkpoint in floating point, head untied: the rotated model
    before rounding, for another quantizer; with --dequantized the quantized values, for any runtime.

    [bold]compressed-tensors[/bold]: for transformers and vLLM. Integers and scales as they are; W4A16 and the like are
    pack-quantized, W4A8 and W8A8 int-quantized, and an online R4 becomes a transform (for vLLM alone).

    [bold]gguf[/bold]: for llama.cpp. Weights of 4 or 8 bits in groups of 32 become Q4_0, Q4_1 or Q8_0, the rest is F16.
    A Modelfile for Ollama lies beside it.

    [bold]native[/bold]: back from a compressed-tensors export.

    What a format cannot hold is refused; the message says which setting of the recipe would help. Recipes that fit:
    w4a16 and w4a8 for compressed-tensors, gguf for gguf.

    Example: jointquant export ./llama-w4a16 --format compressed-tensors --out ./llama-w4a16-ct
    """
    check_format(format)
    from rich.table import Table

    from jointquant.artifact.refusal import refuse_by_configuration

    refuse_by_configuration(artifact, format)

    from jointquant import export_artifact

    result = export_artifact(
        artifact,
        format,
        out,
        dequantized=dequantized,
        base=base,
        dtype=dtype,
        digests=digests_of(no_verify),
        overwrite=overwrite,
        progress=shown_progress(),
    )
    table = Table(show_header=False, title=f"{artifact} → {out}")
    table.add_row("format", result.format)
    table.add_row("size", f"{result.size_bytes / 1e6:.1f} MB")
    if result.untied_bytes:
        cost = (
            f"{result.untied_bytes / 1e6:.1f} MB of it, since this format stores embedding and head, the artifact one"
        )
        table.add_row("untied head", cost)
    table.add_row("seconds", f"{result.seconds:.1f}")
    table.add_row("the export runs in", "\n".join(result.runs_in))
    show(table, as_json)
    finish(result.to_dict(), as_json)
