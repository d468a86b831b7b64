"""A tuned artifact: what was trained, and everything else as it was."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from jointquant._version import __version__
from jointquant.artifact.card import write_card
from jointquant.errors import require
from jointquant.export.artifact import Artifact
from jointquant.files.durable import save_tensors
from jointquant.models.writer import check_held
from jointquant.rotations.bundle import ROTATIONS_NAME
from jointquant.runtime.artifact_digests import QUANTIZATION, digests_of_shards, files_to_vouch_for, write_digests
from jointquant.trust.folder import CONFIG_NAME, DIGESTS_NAME, FINGERPRINT_NAME, small_files

ANEW = (CONFIG_NAME, DIGESTS_NAME, FINGERPRINT_NAME)
"""Files that the tuned artifact has of its own."""


def write_tuned(artifact: Artifact, tensors: Mapping[str, Tensor], facts: dict[str, Any], folder: Path) -> None:
    """Fill a folder with an artifact some tensors of which are others; its fingerprint is left to make.

    Args:
        artifact: the one that was tuned.
        tensors: those that have changed, in the dtypes and shapes that it stores them in.
        facts: what its configuration is to say besides, or otherwise.
        folder: an existing one.

    Raises:
        InputError: a tensor that the artifact does not have, or that is not finite.
        ResumableError: the disk is full.
    """
    files = artifact.stored.files()
    unknown = sorted(set(tensors) - set(files))
    require(not unknown, f"{artifact.folder} has no tensor {unknown[0] if unknown else ''}: expected its own names")
    for file in sorted(set(files.values())):
        held = {name: artifact.stored.load(name) for name, where in files.items() if where == file}
        save_tensors(folder / file, {name: _checked(name, tensors.get(name, old), old) for name, old in held.items()})
    rotations = [ROTATIONS_NAME] if (artifact.folder / ROTATIONS_NAME).is_file() else []
    for name in (*small_files(entry.name for entry in artifact.folder.iterdir()), *rotations):
        if name not in ANEW:
            shutil.copyfile(artifact.folder / name, folder / name)
    config = artifact.data | {QUANTIZATION: artifact.data[QUANTIZATION] | facts | {"jointquant_version": __version__}}
    digests = dict(digests_of_shards(sorted(folder.glob("*.safetensors"))))
    write_digests(folder, config, digests, files_to_vouch_for(folder))
    write_card(folder, config[QUANTIZATION], "native")


def _checked(name: str, tensor: Tensor, old: Tensor) -> Tensor:
    """A tensor in the dtype of the one that it replaces."""
    assert tensor.shape == old.shape, f"{name} is {tuple(tensor.shape)}, and was {tuple(old.shape)}"
    stored = tensor.to(old.dtype)
    check_held(name, stored)
    return stored
