"""The model of a run: what was given, found and opened."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from jointquant.backend.devices import resolve_device, resolve_dtype
from jointquant.hub import Location, locate
from jointquant.models.configuration import read_config
from jointquant.models.layer import Place
from jointquant.models.options import ModelOptions, completed
from jointquant.models.registry import architecture_of
from jointquant.models.rehearsal import rehearse
from jointquant.models.stream import ModelStream, open_stream
from jointquant.progress import Progress
from jointquant.runtime.attention import ATTENTION_NAME
from jointquant.runtime.generation_settings import generation_settings_of
from jointquant.runtime.loading import load_tokenizer
from jointquant.trust.target import check_apart


@dataclass(frozen=True)
class Subject:
    """The model of a run: what was given, what it was resolved to, and where its layers run."""

    model: str | Path | PreTrainedModel
    origin: Location | None
    stream: ModelStream
    tokenizer: PreTrainedTokenizerBase
    place: Place


def open_subject(
    model: str | Path | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    progress: Progress,
    options: ModelOptions,
) -> Subject:
    """Find a model and open it; a model in memory needs its tokenizer. Raises InputError."""
    options = completed(options)
    origin = None
    if not isinstance(model, PreTrainedModel):
        origin = locate(model, options["revision"], options["hub"], progress, before_weights=check_architecture)
        model = origin.folder
    stream = open_stream(model, ATTENTION_NAME, options["allow_pickle"])
    if origin is not None:
        rehearse(stream.skeleton, stream.architecture)
    generation_settings_of(model)  # settings that are none are refused now
    where = resolve_device(options["device"])
    place = Place(where, resolve_dtype(options["dtype"], where, stream.stored_dtype))
    return Subject(model, origin, stream, tokenizer or load_tokenizer(model), place)


def check_not_input(out: Path, subject: Subject) -> None:
    """Raises InputError when output would go into the folder that the model is read from, or replace it."""
    if not isinstance(subject.model, PreTrainedModel):
        check_apart(out, Path(subject.model))


def check_architecture(folder: Path) -> None:
    """Raises InputError when a model's configuration names an unknown family: no weights need be downloaded then."""
    architecture_of(read_config(folder).model_type)
