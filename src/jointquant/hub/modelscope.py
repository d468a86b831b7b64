"""Repositories through ModelScope's own client, an optional dependency."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import constants

from jointquant.errors import InputError, require
from jointquant.hub.failures import brief, causes
from jointquant.hub.repository import (
    SCRIPTS,
    Fetched,
    Repository,
    fetch_model_files,
    is_complete,
)
from jointquant.progress import Progress

DEFAULT_BRANCH = "master"


class Client(NamedTuple):
    """What is used of the ``modelscope`` package."""

    HubApi: Any
    snapshot_download: Any


class ModelScope:
    """The hub that ``MODELSCOPE_ENDPOINT`` names.

    What it fetches is named by branch or tag, as it names no commit; its client draws its own progress bars.
    """

    def fetch_model(
        self,
        repository: Repository,
        progress: Progress,
        out: Path | None,
        before_weights: Callable[[Path], None] | None,
    ) -> Fetched:
        """The files that run a model: what is small first, then the weights that its index names."""
        client = import_client()
        if constants.HF_HUB_OFFLINE:
            return _cached(client, repository)
        with one_line(repository):
            listing = client.HubApi().get_model_files(repository.name, revision=repository.revision, recursive=True)

            def fetch(names: list[str]) -> Path:
                return Path(client.snapshot_download(**_address(repository, out), allow_patterns=names))

            folder = fetch_model_files(repository, [entry["Path"] for entry in listing], fetch, before_weights)
        return Fetched(folder, repository.revision or DEFAULT_BRANCH)

    def fetch_dataset(self, repository: Repository, progress: Progress, out: Path | None) -> Fetched:
        """All files of a data set, scripts left out."""
        client = import_client()
        with one_line(repository):
            folder = client.snapshot_download(**_address(repository, out), ignore_patterns=[SCRIPTS])
        return Fetched(Path(folder), repository.revision or DEFAULT_BRANCH)


def import_client() -> Client:
    """What is used of the ``modelscope`` package. Raises InputError when it is not installed."""
    try:
        from modelscope.hub.api import HubApi
        from modelscope.hub.snapshot_download import snapshot_download
    except ImportError as error:
        raise InputError(
            f"the ModelScope hub needs a package that is not there ({brief(error)}): pip install jointquant[modelscope]"
        ) from None
    for name in ("modelscope", "modelscope_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return Client(HubApi, snapshot_download)


@contextmanager
def one_line(repository: Repository) -> Iterator[None]:
    """Run a block that talks to ModelScope about ``repository``; its failures come out as InputError."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        ours = type(error).__module__.partition(".")[0] in ("modelscope", "modelscope_hub", "requests", "urllib3")
        if not (ours or isinstance(error, (OSError, ValueError))):
            raise
        if any(isinstance(link, (ConnectionError, TimeoutError)) for link in causes(error)):
            words = "the connection failed; run the command again, or pass a local folder"
        else:
            words = brief(error).partition(" | ")[0]  # what follows are the request's details
        raise InputError(f"{repository} cannot be fetched from ModelScope: {words}") from None


def _cached(client: Client, repository: Repository) -> Fetched:
    with one_line(repository):
        folder = Path(client.snapshot_download(**_address(repository, None), local_files_only=True))
    require(is_complete(folder), f"{repository} is only partly in the cache: unset HF_HUB_OFFLINE to fetch the rest")
    return Fetched(folder, repository.revision or DEFAULT_BRANCH)


def _address(repository: Repository, out: Path | None) -> dict[str, Any]:
    where = {} if out is None else {"local_dir": str(out)}
    return {"repo_id": repository.name, "repo_type": repository.kind, "revision": repository.revision} | where
