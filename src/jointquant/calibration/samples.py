"""Samples of pass 1 in a folder: ``samples.json``, and a safetensors file a layer, ``layer-00000.safetensors``.

They are all that rotations are learned from, so these can be trained any number of times on one walk.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jointquant._version import __version__
from jointquant.calibration.training import ModelSizes, RecipeTraining, Scales
from jointquant.distributed.ranks import ALONE, Ranks
from jointquant.errors import InputError, require
from jointquant.files.digests import check_digest, digest_of_file
from jointquant.files.durable import load_tensors, save_json, save_tensors
from jointquant.progress import Progress
from jointquant.recipe.recipe import Recipe
from jointquant.recipe.recorded import recorded
from jointquant.recipe.rotations import LearnedResidualRotation
from jointquant.rotations.bundle import Rotations
from jointquant.run.journal import differences
from jointquant.trust.safetensors_header import read_header
from jointquant.trust.strict_json import read_object

ABOUT_NAME = "samples.json"
FORMAT = 1
RESIDUAL, HEADS, SCALE = "residual", "heads", "scale."
REMEDY = "capture again"


@dataclass(frozen=True)
class LayerSamples:
    """What is kept of one layer of the unquantized model, its norms fused if the recipe of the samples has R1.

    Attributes:
        residual: [tokens, hidden] float32 of all sites that read the residual stream; None: R1 was not to be learned.
        heads: [tokens, heads · head_dim] float32 of o_proj's input; None: R2 was not to be learned.
        scales: SmoothQuant's by site, which divide channels before R2; empty where there are none.
    """

    residual: Tensor | None = None
    heads: Tensor | None = None
    scales: Scales = field(default_factory=dict)

    def tensors(self) -> dict[str, Tensor]:
        """By name, as files hold them."""
        kept = {RESIDUAL: self.residual, HEADS: self.heads}
        scales = {f"{SCALE}{site}": scale for site, scale in self.scales.items()}
        return {name: tensor for name, tensor in kept.items() if tensor is not None} | scales

    @classmethod
    def of(cls, tensors: dict[str, Tensor]) -> LayerSamples:
        """Of what ``tensors`` returned."""
        scales = {n.removeprefix(SCALE): tensor for n, tensor in tensors.items() if n.startswith(SCALE)}
        return cls(tensors.get(RESIDUAL), tensors.get(HEADS), scales)


@dataclass(frozen=True)
class Samples:
    """A folder of samples.

    Attributes:
        folder: where they are.
        model: which model they are of, as an artifact says it.
        sizes: of that model.
        recipe: with which they were taken.
        sensitivities: [layers] float64, where the recipe weights layers by them.
        digests: of the layers' files, in order.
    """

    folder: Path
    model: dict[str, str]
    sizes: ModelSizes
    recipe: Recipe
    sensitivities: Tensor | None
    digests: tuple[str, ...]

    @classmethod
    def open(cls, folder: Path) -> Samples:
        """Read what ``save`` wrote. Raises InputError for a folder that holds no samples, or damaged ones."""
        require(is_samples(folder), f"no samples at {folder}: expected what `jointquant capture` writes")
        about = read_object(folder / ABOUT_NAME)
        version = about.get("format")
        require(version == FORMAT, f"{folder} holds samples of format {version}, expected {FORMAT}: {REMEDY}")
        try:
            sizes, digests = ModelSizes(**about["sizes"]), tuple(map(str, about["digests"]))
            recipe = Recipe.model_validate(about["recipe"])
            measured = about["sensitivities"]
            sensitivities = None if measured is None else torch.tensor(measured, dtype=torch.float64)
            model = {str(key): str(value) for key, value in about["model"].items()}
        except (KeyError, TypeError, ValueError, AttributeError):
            raise InputError(f"{folder / ABOUT_NAME} does not describe samples: {REMEDY}") from None
        count = len(digests)
        require(count == sizes.num_layers, f"{folder} has {count} layers, expected {sizes.num_layers}: {REMEDY}")
        return cls(folder, model, sizes, recipe, sensitivities, digests)

    def save(self) -> None:
        """Write what they are of; the layers are written already."""
        about: dict[str, Any] = {
            "format": FORMAT,
            "jointquant": __version__,
            "model": self.model,
            "sizes": asdict(self.sizes),
            "recipe": recorded(self.recipe),
            "sensitivities": None if self.sensitivities is None else self.sensitivities.tolist(),
            "digests": list(self.digests),
        }
        save_json(self.folder / ABOUT_NAME, about)

    def layer(self, index: int) -> LayerSamples:
        """The samples of one layer. Raises InputError for a file that is not what was written."""
        return LayerSamples.of(load_tensors(self._checked(index)))

    def check_whole(self) -> None:
        """Raises InputError where a layer's file is missing, or is not what was written."""
        for index in range(self.sizes.num_layers):
            self._checked(index)

    def _checked(self, index: int) -> Path:
        file = self.folder / layer_name(index)
        require(file.is_file(), f"{file} is missing: {REMEDY}")
        read_header(file)
        check_digest(file.name, self.folder, digest_of_file(file), self.digests[index], REMEDY)
        return file

    def layers(self) -> Iterator[LayerSamples]:
        """The layers in order, each read when its turn comes."""
        return map(self.layer, range(self.sizes.num_layers))

    def check(self, recipe: Recipe) -> None:
        """Raises InputError for a recipe that would have taken other samples, naming what is different."""
        found = differences(sampling_of(self.recipe, recipe), sampling_of(recipe, recipe))
        require(
            not found,
            f"the samples at {self.folder} are not those of the recipe: {'; '.join(found)}, expected the settings that "
            "they were captured with, or another capture",
        )


def is_samples(folder: Path) -> bool:
    """Whether a folder says that it holds samples."""
    return (folder / ABOUT_NAME).is_file()


def layer_name(index: int) -> str:
    """The file of a layer."""
    return f"layer-{index:05d}.safetensors"


def save_layer(folder: Path, index: int, samples: LayerSamples) -> str:
    """Write a layer's file; returns its digest. Raises ResumableError when the disk is full."""
    file = folder / layer_name(index)
    save_tensors(file, samples.tensors())
    return digest_of_file(file)


def sampling_of(taken: Recipe, wanted: Recipe) -> dict[str, Any]:
    """Those settings of ``taken`` on which the samples depend that ``wanted`` learns from."""
    settings = taken.model_dump(mode="json")
    calibration = {key: value for key, value in settings["calibration"].items() if key != "activations"}
    found: dict[str, Any] = {"calibration": calibration, "smoothing": settings["smoothing"]}
    if wanted.smoothing.alpha is not None:  # without R1 the sites behind norms are smoothed too
        found["rotations.r1"] = "none" if taken.rotations.r1.kind == "none" else "some"
    for name in ("r1", "r2"):
        rotation = getattr(taken.rotations, name)
        if getattr(wanted.rotations, name).kind == "learned":
            found[f"rotations.{name}.num_tokens"] = getattr(rotation, "num_tokens", None)
    r1, used = wanted.rotations.r1, taken.rotations.r1
    if isinstance(r1, LearnedResidualRotation) and r1.weights == "sensitivity":
        found["rotations.r1.weights"] = getattr(used, "weights", None)
        found["rotations.r1.init"] = getattr(used, "init", None)
        found["activations"] = settings["activations"]
        found["overrides"] = settings["overrides"]
    return found


def learn_on_samples(
    samples: Samples, training: RecipeTraining, device: torch.device, progress: Progress, ranks: Ranks = ALONE
) -> Rotations:
    """The rotations of a recipe as pass 1 learns them, from samples of an earlier walk.

    Args:
        samples: of the walk.
        training: of the recipe, which ``Samples.check`` has accepted.
        device: where they are trained.
        progress: where progress is shown.
        ranks: who shares the work.

    Raises:
        InputError: a file of samples is not what was written.
    """
    scales = []
    with progress.stage("learn R2", samples.sizes.num_layers) as stage:
        for index, layer in enumerate(samples.layers()):
            if training.residual is not None:
                assert layer.residual is not None
                training.residual.take(index, layer.residual.to(device))
            if training.heads is not None:
                assert layer.heads is not None
                training.heads.take(index, layer.heads.to(device), layer.scales)
            scales.append(layer.scales)
            stage.advance()
    return training.finish(scales if any(scales) else (), samples.sensitivities, progress)
