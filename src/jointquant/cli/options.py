"""Arguments and options that several verbs share."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from jointquant.models.options import DigestMode

ModelArgument = Annotated[
    str, typer.Argument(help="A model folder (config.json, safetensors, tokenizer.json), or a hub id.")
]
RunnableArgument = Annotated[
    str, typer.Argument(help="A model folder, a hub id, or an artifact that `quantize` wrote.")
]
RevisionOption = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id (also: owner/name@tag).")]
HubOption = Annotated[Literal["hf", "modelscope"], typer.Option(help="The hub that ids belong to.")]
DeviceOption = Annotated[
    str, typer.Option(help="auto: the accelerator if there is one; or cpu, or one that `jointquant doctor` lists.")
]
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
DeviceMemoryOption = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="The accelerator's memory to use; with --dry-run also of one not at hand."),
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Print the plan (memory, disk, time) and stop: config.json is enough.")
]
SamplesOption = Annotated[int | None, typer.Option(help="Calibration windows.")]
SeqlenOption = Annotated[
    int | None, typer.Option(help="Tokens of a calibration window (default: 2048, or what the model reads).")
]
SeedOption = Annotated[int | None, typer.Option(min=0, help="Seed of every random choice.")]
AllowPickleOption = Annotated[bool, typer.Option("--allow-pickle", help="Read a folder's pytorch_model.bin.")]

NoVerifyOption = Annotated[
    bool, typer.Option("--no-verify", help="Do not check an artifact against the digests that it carries.")
]


def digests_of(no_verify: bool) -> DigestMode | None:
    """What ``--no-verify`` says of digests; without it nothing is said."""
    return "ignore" if no_verify else None
