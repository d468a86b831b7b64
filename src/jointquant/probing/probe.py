"""A family that nobody has described: what its architecture seems to be, whether it holds, and the file to add."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from transformers import PretrainedConfig
from typing_extensions import Unpack

from jointquant.errors import printable, require
from jointquant.hub import locate_configuration
from jointquant.models.configuration import read_config, read_config_file
from jointquant.models.options import ModelOptions, completed
from jointquant.models.registry import ARCHITECTURES
from jointquant.probing.data_file import data_file
from jointquant.probing.proposal import proposed
from jointquant.probing.shrink import shrunken, small_model
from jointquant.probing.trace import trace
from jointquant.probing.trial import TOLERANCE, errors
from jointquant.progress import Progress, shown


@dataclass(frozen=True)
class ProbeResult:
    """What was found of a family.

    Attributes:
        model_type: of its configuration.
        known: whether there is a file already.
        errors: by rotation: how far it moves the logits of a small copy in float64, relative to the largest.
        holds: the rotations that move them by no more than rounding does.
        doubts: what the run did not show, one sentence each.
        file: the text of ``models/<model_type>.py``.
        tiny: the configuration that tests would take, as JSON.
    """

    model_type: str
    known: bool
    errors: dict[str, float]
    holds: list[str]
    doubts: list[str]
    file: str
    tiny: str

    def to_dict(self) -> dict[str, object]:
        """As plain data."""
        return asdict(self)


def probe(model: str | Path, *, progress: Progress | None = None, **options: Unpack[ModelOptions]) -> ProbeResult:
    """Watch a small copy of a model run, propose its architecture, and try the proposal.

    Args:
        model: a folder that holds config.json at least, such a file of any name, or a hub id. No weights are read.
        progress: where a download is shown.
        **options: as for ``quantize``.

    Raises:
        InputError: no such configuration, or one of which no small copy can be built and run.
    """
    return probe_of(_configuration(model, completed(options), shown(progress)))


def probe_of(config: PretrainedConfig) -> ProbeResult:
    """The same, of a configuration."""
    small = shrunken(config)
    tiny = small_model(small)
    found = proposed(tiny, trace(tiny))
    doubts, measured = list(found.doubts), dict[str, float]()
    if not any(
        "not described" in doubt or doubt.startswith(("No layer", "Some layers", "The experts")) for doubt in doubts
    ):
        try:
            measured = errors(tiny, found.architecture)
        except (AttributeError, AssertionError, RuntimeError) as error:
            doubts.append(
                f"The model has no modules as the proposal says, which cannot be tried: {printable(str(error), 200)}."
            )
    if found.architecture.writer_norms:
        doubts.append("Norms stand behind what layers write, so no R1 is possible: `writer_norms` says so.")
    return ProbeResult(
        model_type=config.model_type,
        known=config.model_type in ARCHITECTURES,
        errors=measured,
        holds=[name for name, error in measured.items() if error < TOLERANCE],
        doubts=doubts,
        file=data_file(found.architecture),
        tiny=json.dumps(small.to_diff_dict(), sort_keys=True, default=str),
    )


def _configuration(model: str | Path, options: ModelOptions, progress: Progress) -> PretrainedConfig:
    if os.path.isfile(model):
        require(options["revision"] is None, f"{model} is a file: expected no revision, got {options['revision']}")
        return read_config_file(Path(model))
    return read_config(locate_configuration(model, options["revision"], options["hub"], progress))
