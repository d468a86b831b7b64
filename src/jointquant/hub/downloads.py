"""Many repositories at once: sizes are told before anything large is fetched; each is checked when it is there.

What is in the cache already is not fetched again, so the same call goes on where another was stopped.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from huggingface_hub import constants, try_to_load_from_cache

from jointquant.errors import InputError, require
from jointquant.hub.failures import one_line
from jointquant.hub.huggingface import HuggingFace, Remote
from jointquant.hub.location import locate_configuration
from jointquant.hub.repository import Repository, names_of_weights
from jointquant.progress import Progress
from jointquant.trust.folder import small_files
from jointquant.trust.safetensors_header import read_header


@dataclass(frozen=True)
class Wanted:
    """What is to be fetched of the hub.

    Attributes:
        name: as the user knows it.
        repository: where it is.
        files: which files; empty: those that run a model.
    """

    name: str
    repository: Repository
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Listed:
    """What the hub says of something that is wanted.

    Attributes:
        wanted: what.
        revision: by which the cache knows it.
        sizes: bytes of each of its files.
    """

    wanted: Wanted
    revision: str | None
    sizes: dict[str, int]

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(self.sizes.values())

    @cached_property
    def missing(self) -> int:
        """Bytes of the files that are not in the cache."""
        return sum(size for name, size in self.sizes.items() if self.path(name) is None)

    def path(self, name: str) -> Path | None:
        """Where a file lies in the cache; None: it is not there."""
        repository = self.wanted.repository
        revision = self.revision or repository.revision
        found = try_to_load_from_cache(repository.name, name, revision=revision, repo_type=repository.kind)
        return Path(found) if isinstance(found, str) else None

    def fetch(self, progress: Progress) -> None:
        """Bring all of it to the cache, and check it. Raises InputError."""
        repository = self.wanted.repository
        if self.wanted.files:
            for name in self.wanted.files:
                HuggingFace().fetch_file(repository, name, progress)
        else:
            HuggingFace().fetch_model(repository, progress, None, None)
        self.check()

    def check(self) -> None:
        """Raises InputError for a file that is not there, not as long as the hub says, or no safetensors file."""
        for name, size in self.sizes.items():
            path = self.path(name)
            found = None if path is None else path.stat().st_size
            require(
                found == size,
                f"{name} of {self.wanted.repository} has {found} bytes in the cache: expected {size}, as the hub lists "
                f"it, remove {path} to fetch it again",
            )
            if path is not None and path.suffix == ".safetensors":
                read_header(path)


@dataclass(frozen=True)
class Downloads:
    """What the hub has of a list, and what it has not.

    Attributes:
        listed: what can be fetched.
        refused: what cannot, by name, and why.
    """

    listed: tuple[Listed, ...]
    refused: dict[str, str]

    @classmethod
    def of(cls, wanted: Iterable[Wanted], progress: Progress) -> Downloads:
        """Ask the hub. Of models what is small is fetched: their index says which files they need.

        Raises:
            InputError: no hub may be asked.
        """
        offline = constants.HF_HUB_OFFLINE
        require(not offline, "HF_HUB_OFFLINE is set and a list is asked for, whose sizes only the hub knows: unset it")
        listed, refused = list[Listed](), dict[str, str]()
        for each in wanted:
            try:
                listed.append(_files_of(each) if each.files else _model_of(each, progress))
            except InputError as error:
                refused[each.name] = str(error)
        return cls(tuple(listed), refused)

    @property
    def missing(self) -> int:
        """Bytes that are to be fetched."""
        return sum(each.missing for each in self.listed)

    def fetch(self, progress: Progress) -> None:
        """Fetch and check all that can be had.

        Raises:
            InputError: the disk has too little room, and nothing was fetched; or, when all else is there, what could
                not be had.
        """
        free = _free(Path(constants.HF_HUB_CACHE))
        require(
            self.missing <= free,
            f"{self.missing / 1e9:.2f} GB are to be fetched to {constants.HF_HUB_CACHE}, which has {free / 1e9:.2f} GB "
            "free: expected more room, a shorter list, or another HF_HOME",
        )
        failed = dict(self.refused)
        for each in self.listed:
            try:
                each.fetch(progress)
            except InputError as error:
                failed[each.wanted.name] = str(error)
        words = "; ".join(failed.values())
        require(not failed, f"{len(failed)} of {len(self.listed) + len(self.refused)} could not be fetched: {words}")


def _model_of(wanted: Wanted, progress: Progress) -> Listed:
    repository = wanted.repository
    address = repository.name if repository.revision is None else f"{repository.name}@{repository.revision}"
    folder = locate_configuration(address, None, "hf", progress)
    with one_line(repository):
        remote = Remote.of(repository)
    names: Sequence[str] = [*small_files(remote.sizes), *names_of_weights(repository, remote.sizes, folder)]
    return Listed(wanted, remote.commit, {name: remote.sizes[name] for name in names})


def _files_of(wanted: Wanted) -> Listed:
    sizes = {name: HuggingFace().size_of(wanted.repository, name) for name in wanted.files}
    return Listed(wanted, wanted.repository.revision, sizes)


def _free(folder: Path) -> int:
    """Bytes free where ``folder`` is or will be."""
    return shutil.disk_usage(next(place for place in (folder, *folder.absolute().parents) if place.exists())).free
