"""The verb ``tune``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jointquant.cli.options import (
    AllowPickleOption,
    CalibOption,
    DeviceOption,
    DtypeOption,
    HubOption,
    JsonOption,
    MemoryOption,
    NoVerifyOption,
    OverwriteOption,
    RevisionOption,
    SamplesOption,
    SeedOption,
    SeqlenOption,
    digests_of,
)
from jointquant.cli.output import finish, show, shown_progress
from jointquant.errors import InputError, require
from jointquant.models.options import ModelOptions

if TYPE_CHECKING:
    from rich.table import Table

    from jointquant import TuneResult


def tune(
    artifact: Annotated[Path, typer.Argument(help="An artifact that `quantize` wrote.")],
    reference: Annotated[str, typer.Option(metavar="MODEL", help="The model that it was made of.")],
    out: Annotated[Path, typer.Option(help="A new folder. It appears only when it is complete.")],
    calib: CalibOption = None,
    num_samples: SamplesOption = None,
    seqlen: SeqlenOption = None,
    epochs: Annotated[int, typer.Option(min=1, help="How often every window is seen.")] = 2,
    batch_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a step, of one window at least.")] = 512,
    rate: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PART=RATE",
            help="Train scales, biases, means or clips at another rate than the usual one; 0: not at all. Repeatable.",
        ),
    ] = None,
    seed: SeedOption = None,
    revision: RevisionOption = None,
    hub: HubOption = "hf",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    memory_budget: MemoryOption = None,
    allow_pickle: AllowPickleOption = False,
    no_verify: NoVerifyOption = False,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train what an artifact stores until it predicts more of what its model does: same size, same speed, less loss.

    Model and artifact are in memory together, with 12 bytes for each quantized weight besides. Text and windows
    are those that the artifact was calibrated on, unless others are named. A run that was stopped goes on with the same
    command.

    Example: jointquant tune ./llama-int4 --reference meta-llama/Llama-3.2-1B --out ./llama-int4-tuned
    """
    from jointquant.cli.given import check_given

    check_given((str(artifact), reference), () if calib is None else (calib,))
    from jointquant import TuneSettings
    from jointquant import tune as run
    from jointquant.cli.plan_table import resumable

    options = ModelOptions(revision=revision, hub=hub, device=device, dtype=dtype, allow_pickle=allow_pickle)
    options["digests"] = digests_of(no_verify)
    settings = TuneSettings(epochs, batch_tokens, rates_of(rate or []), seed or 0)
    with resumable(out):
        result = run(
            artifact,
            reference,
            out,
            settings=settings,
            calib=calib,
            num_samples=num_samples,
            seqlen=seqlen,
            memory_budget=memory_budget,
            overwrite=overwrite,
            progress=shown_progress(),
            **options,
        )
    show(_table(result), as_json)
    finish(result.to_dict(), as_json)


def rates_of(given: list[str]) -> dict[str, float]:
    """The usual rates with those that are given as ``part=rate``. Raises InputError for what is none."""
    from jointquant.tuning.settings import RATES

    rates = dict(RATES)
    for each in given:
        part, equals, number = each.partition("=")
        require(bool(equals), f"--rate {each!r}: expected PART=RATE, such as scales=0.001")
        require(part in RATES, f"--rate {each!r}: unknown part {part!r}, expected one of {', '.join(RATES)}")
        try:
            rates[part] = float(number)
        except ValueError:
            raise InputError(f"--rate {each!r}: expected a number behind the sign, such as scales=0.001") from None
    return {part: rate for part, rate in rates.items() if rate != 0}


def _table(result: TuneResult) -> Table:
    """Before and after, on windows that nothing was trained on."""
    from rich.table import Table

    title = f"{result.artifact}: trained on {result.windows} windows of {result.seqlen} in {result.seconds:.0f} s"
    table = Table("on held-out windows", "KL divergence", "99 % of tokens below", "same top token", title=title)
    for name, found in (("before", result.before), ("after", result.after)):
        table.add_row(name, f"{found.mean:.4f}", f"{found.p99:.4f}", f"{found.same_top:.1%}")
    return table
