"""What all hubs share: the name of a repository, the files a model needs, and what a fetch brings."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal, Protocol

from jointquant.errors import InputError, require
from jointquant.progress import Progress
from jointquant.trust.folder import small_files
from jointquant.trust.shard_index import SAFETENSORS, read_index

Kind = Literal["model", "dataset"]

INDEX_NAME, SINGLE_NAME = SAFETENSORS.index, SAFETENSORS.single
ROTATIONS_NAME = "rotations.safetensors"

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
SCRIPTS = "*.py"  # never fetched: nothing of a repository is executed


@dataclass(frozen=True)
class Repository:
    """A repository of a hub: its id, what it holds, and a branch, tag or commit (None: the default branch)."""

    name: str
    kind: Kind
    revision: str | None = None

    def __str__(self) -> str:
        noun = "model" if self.kind == "model" else "data set"
        return f"{noun} {self.name}" + (f" at revision {self.revision}" if self.revision else "")


@dataclass(frozen=True)
class Fetched:
    """Where a repository lies on this machine, and which commit it is (the branch or tag where the hub names none)."""

    folder: Path
    revision: str


class Hub(Protocol):
    """A place that repositories are fetched from."""

    def fetch_model(
        self,
        repository: Repository,
        progress: Progress,
        out: Path | None,
        before_weights: Callable[[Path], None] | None,
    ) -> Fetched:
        """The files that run a model, in ``out`` or in the cache. Raises InputError."""

    def fetch_dataset(self, repository: Repository, progress: Progress, out: Path | None) -> Fetched:
        """The files of a data set, in ``out`` or in the cache. Raises InputError."""


def check_model_files(repository: Repository, names: Iterable[str]) -> None:
    """Raises InputError when a repository's files are no transformers model with safetensors weights."""
    have = set(names)
    require("config.json" in have, f"{repository} has no config.json: expected a transformers model")
    if have & {INDEX_NAME, SINGLE_NAME}:
        return
    pickles = sorted(name for name in have if any(fnmatch(name, pattern) for pattern in PICKLES))
    what = f"only pickle weights ({pickles[0]})" if pickles else "no weights"
    raise InputError(f"{repository} has {what}: expected {SINGLE_NAME} or {INDEX_NAME}")


def fetch_model_files(
    repository: Repository,
    names: Iterable[str],
    fetch: Callable[[list[str]], Path],
    before_weights: Callable[[Path], None] | None,
) -> Path:
    """Fetch what runs a model: what is small first, then the weights that its index names, and its rotations.

    Args:
        repository: the model.
        names: all files of the repository.
        fetch: brings files to a folder, and returns the folder.
        before_weights: called with the folder between the two; it may raise InputError.
    """
    have = set(names)
    check_model_files(repository, have)
    folder = fetch(small_files(have))
    if before_weights is not None:
        before_weights(folder)
    fetch(names_of_weights(repository, have, folder))
    return folder


def names_of_weights(repository: Repository, names: Iterable[str], folder: Path) -> list[str]:
    """The files of a model's weights and rotations.

    Args:
        repository: the model.
        names: all files of the repository.
        folder: where what is small of it lies.

    Raises:
        InputError: the repository lacks one.
    """
    have = set(names)
    weights = [SINGLE_NAME] if SINGLE_NAME in have else weight_files(folder)
    missing = [name for name in weights if name not in have]
    require(not missing, f"{repository} lacks {', '.join(missing[:3])}, which its index names")
    return [*weights, *({ROTATIONS_NAME} & have)]


def weight_files(folder: Path) -> list[str]:
    """The weight files of a model whose small files lie in ``folder``: the single file, or the index's shards."""
    single = (folder / SINGLE_NAME).is_file() or not (folder / INDEX_NAME).exists()
    return [SINGLE_NAME] if single else list(read_index(folder).files)


def is_complete(folder: Path) -> bool:
    """Whether a model's configuration and all its weights lie in ``folder``."""
    needed = ["config.json", *weight_files(folder)]
    return all((folder / name).is_file() for name in needed)
