"""Where a model lies: a local folder as it is, or a repository of a hub brought to a local folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jointquant.errors import InputError, require, unknown
from jointquant.hub import huggingface, modelscope
from jointquant.hub.repository import Fetched, Hub, Kind, Repository
from jointquant.progress import Progress, Silent
from jointquant.trust.model_name import REPOSITORY_ID, check_model_name
from jointquant.trust.permissions import seal

HUBS: dict[str, Hub] = {"hf": huggingface.HuggingFace(), "modelscope": modelscope.ModelScope()}


@dataclass(frozen=True)
class Location:
    """A model on this machine, and where it came from.

    Attributes:
        folder: where its files lie.
        name: the hub id, or the folder's own name.
        revision: the commit of a hub's repository (the branch or tag where the hub names none); None: a local folder.
    """

    folder: Path
    name: str
    revision: str | None = None


def locate(
    model: str | Path,
    revision: str | None = None,
    hub: str = "hf",
    progress: Progress | None = None,
    before_weights: Callable[[Path], None] | None = None,
) -> Location:
    """Find a model; fetch what is missing of a hub's one.

    Args:
        model: a local folder, which always wins, or a hub id ``owner/name`` or ``owner/name@revision``.
        revision: branch, tag or commit of a hub id.
        hub: ``hf`` or ``modelscope``.
        progress: where the download is shown; None: nowhere.
        before_weights: called with the folder when only the configuration and the tokenizer are there; it may refuse
            the model by raising InputError.

    Raises:
        InputError: no such model, nothing to run in it, or a hub that cannot be reached.
    """
    require(hub in HUBS, unknown("hub", hub, HUBS))
    folder = Path(model)
    if os.path.isdir(folder):
        require(revision is None, f"{model} is a local folder: expected no revision, got {revision}")
        return Location(folder, Path(os.path.abspath(folder)).name)
    check_model_name(model)
    repository = parse_repository(str(model), "model", revision)
    found = HUBS[hub].fetch_model(repository, progress or Silent(), None, before_weights)
    return Location(found.folder, repository.name, found.revision)


class _ConfigurationFoundError(Exception):
    """Stops a download before the weights, with its folder: it is what ``before_weights`` may do."""


def locate_configuration(model: str | Path, revision: str | None, hub: str, progress: Progress) -> Path:
    """A folder with a model's configuration; of a hub's model nothing else is fetched. Raises InputError as ``locate``.

    Args:
        model: as for ``locate``.
        revision: as for ``locate``.
        hub: as for ``locate``.
        progress: where the download is shown.
    """

    def stop(folder: Path) -> None:
        raise _ConfigurationFoundError(folder)

    try:
        return locate(model, revision, hub, progress, before_weights=stop).folder
    except _ConfigurationFoundError as found:
        return Path(found.args[0])


def download(
    repository: str,
    *,
    hub: str = "hf",
    dataset: bool = False,
    revision: str | None = None,
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> Fetched:
    """Fetch a model (what is needed to run it) or a data set (all its files, scripts left out).

    Args:
        repository: the id ``owner/name``, optionally with ``@revision``.
        hub: ``hf`` or ``modelscope``.
        dataset: the repository is a data set.
        revision: branch, tag or commit.
        out: a folder for the files; None: the library's cache.
        progress: where the download is shown; None: nowhere.

    Raises:
        InputError: no such repository or revision, or a hub that cannot be reached.
    """
    require(hub in HUBS, unknown("hub", hub, HUBS))
    target = None if out is None else Path(out)
    require(target is None or not os.path.isfile(target), f"output {out} is a file: expected a folder")
    fresh = target is not None and not (target.is_dir() and any(target.iterdir()))
    wanted = parse_repository(repository, "dataset" if dataset else "model", revision)
    if dataset:
        found = HUBS[hub].fetch_dataset(wanted, progress or Silent(), target)
    else:
        found = HUBS[hub].fetch_model(wanted, progress or Silent(), target, None)
    if fresh:
        seal(found.folder)
    return found


def parse_repository(text: str, kind: Kind, revision: str | None = None) -> Repository:
    """Read ``owner/name`` or ``owner/name@revision``. Raises InputError for anything else."""
    name, at, inline = text.partition("@")
    require(bool(REPOSITORY_ID.fullmatch(name)), f"{text!r} is no hub id: expected owner/name or owner/name@revision")
    require(not at or bool(inline), f"{text!r} names no revision after the @: expected a branch, a tag or a commit")
    if inline and revision and inline != revision:
        raise InputError(f"two revisions, {inline} and {revision}: expected one")
    return Repository(name, kind, inline or revision)
