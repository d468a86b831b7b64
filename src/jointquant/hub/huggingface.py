"""Repositories through huggingface_hub: into its cache, and pinned to a commit."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError

from jointquant.errors import require
from jointquant.hub.byte_progress import byte_stage
from jointquant.hub.failures import one_line
from jointquant.hub.repository import (
    SCRIPTS,
    Fetched,
    Repository,
    fetch_model_files,
    is_complete,
)
from jointquant.progress import Progress
from jointquant.trust.files import boundary

COMMIT = re.compile(r"[0-9a-f]{40}")


class HuggingFace:
    """The hub that ``HF_ENDPOINT`` names."""

    def fetch_model(
        self,
        repository: Repository,
        progress: Progress,
        out: Path | None,
        before_weights: Callable[[Path], None] | None,
    ) -> Fetched:
        """The files that run a model: what is small first, then the weights that its index names."""
        with one_line(repository):
            cached = None if out else cached_model(repository)
            if cached is not None:
                return cached
            remote = Remote.of(repository)
            fetch = partial(remote.fetch, progress=progress, out=out)
            folder = fetch_model_files(repository, remote.sizes, fetch, before_weights)
        return Fetched(folder, remote.commit)

    def fetch_dataset(self, repository: Repository, progress: Progress, out: Path | None) -> Fetched:
        """All files of a data set, scripts left out."""
        with one_line(repository):
            if constants.HF_HUB_OFFLINE:
                folder = snapshot_download(**_address(repository), ignore_patterns=SCRIPTS, local_files_only=True)
                return Fetched(Path(folder), Path(folder).name)
            remote = Remote.of(repository)
            names = [name for name in remote.sizes if not name.endswith(".py")]
            require(bool(names), f"{repository} has no files: expected a data set")
            return Fetched(remote.fetch(names, progress, out), remote.commit)

    def check(self, repository: Repository) -> None:
        """Raises InputError when the hub has no such repository or will not show it; offline, nothing is asked."""
        if not constants.HF_HUB_OFFLINE:
            with one_line(repository):
                Remote.of(repository)

    def size_of(self, repository: Repository, name: str) -> int:
        """Bytes of one file. Raises InputError when there is none of this name."""
        with one_line(repository):
            found = HfApi().get_paths_info(paths=name, **_address(repository))
            require(bool(found), f"{repository} has no file {name}: expected the layout it was published with")
            return int(getattr(found[0], "size", 0))

    def fetch_file(self, repository: Repository, name: str, progress: Progress) -> Path:
        """One file, in the cache; nothing else of its repository, which may be very large, is listed or fetched."""
        with one_line(repository):
            address = _address(repository)
            if constants.HF_HUB_OFFLINE:
                return Path(hf_hub_download(**address, filename=name, local_files_only=True))
            size = self.size_of(repository, name)
            with byte_stage(progress, f"download {repository.name}", size) as bar_class:
                return Path(hf_hub_download(**address, filename=name, tqdm_class=bar_class))


@dataclass(frozen=True)
class Remote:
    """A repository as the hub lists it: its commit, and the size of each file."""

    repository: Repository
    commit: str
    sizes: dict[str, int]

    @classmethod
    def of(cls, repository: Repository) -> Remote:
        """Ask the hub, and wait no longer than for the metadata of a file."""
        ask = HfApi().model_info if repository.kind == "model" else HfApi().dataset_info
        info = ask(
            repository.name,
            revision=repository.revision,
            files_metadata=True,
            timeout=constants.HF_HUB_ETAG_TIMEOUT,
        )
        require(info.sha is not None, f"{repository}: the hub names no commit")
        assert info.sha is not None
        return cls(repository, info.sha, {file.rfilename: file.size or 0 for file in info.siblings or []})

    def fetch(self, names: list[str], progress: Progress, out: Path | None) -> Path:
        """Bring these files of the listed commit to the cache or to ``out``; returns the folder they lie in.

        The revision is asked for as the user named it, because that is how the cache learns which commit it meant:
        offline runs find it by that name.
        """
        address = _address(self.repository)
        if out is not None:
            address |= {"revision": self.commit, "local_dir": out}
        total = sum(self.sizes[name] for name in names)
        with byte_stage(progress, f"download {self.repository.name}", total) as bar_class:
            folder = Path(snapshot_download(**address, allow_patterns=names, tqdm_class=bar_class))
        moved = out is None and folder.name != self.commit
        require(not moved, f"{self.repository} changed while it was downloaded: run the command again")
        return folder


def fetch_beside(folder: Path, names: Iterable[str]) -> None:
    """Bring files of a repository beside those of it that lie in a snapshot of the hub's cache.

    transformers fetches a model's configuration and shards alone. In any other folder nothing is done.

    Args:
        folder: the snapshot.
        names: those that are there already are not asked for.

    Raises:
        InputError: the hub cannot be reached, or has no such file.
    """
    inside = boundary(folder)
    if inside == Path(os.path.realpath(folder)):
        return
    repository = Repository(inside.name.partition("--")[2].replace("--", "/"), "model", folder.name)
    for name in names:
        if not (folder / name).exists():
            with one_line(repository):
                hf_hub_download(**_address(repository), filename=name, cache_dir=inside.parent)


def cached_model(repository: Repository) -> Fetched | None:
    """A model that needs no hub: offline, or pinned to a commit of which the cache has everything."""
    pinned = COMMIT.fullmatch(repository.revision or "") is not None
    if not (constants.HF_HUB_OFFLINE or pinned):
        return None
    try:
        folder = Path(snapshot_download(**_address(repository), allow_patterns="config.json", local_files_only=True))
    except LocalEntryNotFoundError:
        if constants.HF_HUB_OFFLINE:
            raise
        return None
    if is_complete(folder):
        return Fetched(folder, folder.name)
    require(
        not constants.HF_HUB_OFFLINE,
        f"{repository} is only partly in the cache: unset HF_HUB_OFFLINE to fetch the rest",
    )
    return None


def _address(repository: Repository) -> dict[str, Any]:
    return {"repo_id": repository.name, "repo_type": repository.kind, "revision": repository.revision}
