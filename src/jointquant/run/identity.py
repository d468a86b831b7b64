"""What a run is: it goes on where it was only if all of this is the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from jointquant._version import __version__
from jointquant.distributed.ranks import Ranks
from jointquant.errors import require
from jointquant.files.digests import digest_of_bytes, digest_of_tensors, running
from jointquant.models.stream import ModelStream
from jointquant.recipe.recipe import CalibrationSettings, Recipe
from jointquant.recipe.recorded import recorded
from jointquant.run.journal import differences
from jointquant.run.opening import Subject

PIECES, PIECE = 64, 4096
"""Of a file that is compared with another: how many pieces are read, and bytes of one."""


def identity_of(
    subject: Subject,
    recipes: Mapping[str, Recipe],
    windows: Mapping[CalibrationSettings, Tensor],
    batch_tokens: int,
    besides: Mapping[str, Any],
) -> dict[str, Any]:
    """Plain data, by what a user could have changed.

    Args:
        subject: the model, and where it runs.
        recipes: by label, all their settings.
        windows: the calibration windows [n, T] of each calibration settings.
        batch_tokens: how many tokens run at once: the last digits of sums depend on it.
        besides: what else makes the run what it is; empty where one recipe becomes an artifact.
    """
    each = {label: _of_recipe(recipe, windows[recipe.calibration]) for label, recipe in recipes.items()}
    return {
        "model": identity_of_model(subject.stream),
        **({"recipes": each, **besides} if besides else next(iter(each.values()))),
        "batch_tokens": batch_tokens,
        "device": subject.place.device.type,
        "dtype": str(subject.place.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),  # sums are split over them
        "versions": versions(),
        "format": 7,  # of the journal and what it leaves behind
    }


def identity_of_model(stream: ModelStream) -> dict[str, Any]:
    """Of a model, wherever it lies: its files, and what its configuration says."""
    config = stream.skeleton.config.to_dict()
    config.pop("_name_or_path", None)
    return {**stream.stored.identity(), "config": digest_of_json(config)}


def digest_of_json(data: Any) -> str:
    """Of plain data, in whatever order its keys are."""
    return digest_of_bytes(json.dumps(data, sort_keys=True, default=str).encode())


def _of_recipe(recipe: Recipe, windows: Tensor) -> dict[str, Any]:
    return {
        "recipe": recorded(recipe),
        "windows": {"shape": list(windows.shape), "tokens": digest_of_tensors({"tokens": windows.cpu()})},
    }


def versions() -> dict[str, str]:
    """Of what results depend on."""
    return {"jointquant": __version__, "torch": torch.__version__, "transformers": transformers.__version__}


def sample_digest(path: Path) -> str:
    """A short fingerprint of a file's size and of pieces of it, from the first byte to the last."""
    size = path.stat().st_size
    found = running()
    found.update(str(size).encode())
    with path.open("rb") as file:
        for piece in range(PIECES):
            file.seek(max(0, size - PIECE) * piece // (PIECES - 1))
            found.update(file.read(PIECE))
    return found.hexdigest()


def check_alike(ranks: Ranks, identity: dict[str, Any], folder: Path | None) -> None:
    """Refuse ranks that do not do the same run.

    Of a model's files sizes and samples of the bytes are compared; when they were last changed may differ by host.

    Args:
        ranks: all of them.
        identity: of this rank's run, as ``identity_of`` makes it.
        folder: where the model's shards are; None for a model in memory.

    Raises:
        InputError: names a rank and what is different there.
    """
    if ranks.size == 1:
        return
    model = dict(identity["model"])
    if folder is not None:
        model["shards"] = {name: sample_digest(folder / name) for name in model["shards"]}
    alike = {key: value for key, value in identity.items() if key != "threads"}  # each host has its own
    every = ranks.ask({**alike, "model": model})
    for rank, other in enumerate(every):
        found = differences(every[0], other)
        require(
            not found,
            f"rank {rank} was given another run than rank 0 (was: rank 0, now: rank {rank}): {'; '.join(found)}, "
            "expected the same command everywhere",
        )


def folder_identity(ranks: Ranks, folder: Path) -> dict[str, Any]:
    """What is compared of a model folder that several ranks only read; nothing for one alone."""
    if ranks.size == 1:
        return {}
    shards = sorted(path.name for path in folder.glob("*.safetensors"))
    return {"model": {"config": sample_digest(folder / "config.json"), "shards": dict.fromkeys(shards, "")}}
