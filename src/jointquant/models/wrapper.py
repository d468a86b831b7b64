"""What stands around a text model that also reads images: towers, and what of them writes to the residual stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from jointquant.errors import require

if TYPE_CHECKING:  # the table of families is read without torch, which takes seconds to import
    from torch import nn
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class BeforeLayers:
    """A linear of a tower whose outputs stand among the token embeddings.

    Attributes:
        linear: its full name.
    """

    linear: str

    def found(self, model: nn.Module) -> dict[str, int]:
        """The linear, and the layer whose R1 it takes."""
        return {self.linear: 0}


@dataclass(frozen=True)
class BehindLayers:
    """Modules of a tower, one for each of the first layers, behind which they add to the residual stream.

    Attributes:
        modules: the full name of their list.
        linear: the linear of each that does.
    """

    modules: str
    linear: str

    def found(self, model: nn.Module) -> dict[str, int]:
        """The linears, and the layer that each is read by first, whose R1 it takes."""
        count = len(model.get_submodule(self.modules))  # type: ignore[arg-type]
        return {f"{self.modules}.{index}.{self.linear}": index + 1 for index in range(count)}


@dataclass(frozen=True)
class Wrapper:
    """What a model has besides the text model inside it.

    Attributes:
        texts: the ``model_type`` of the text models that the rest of the architecture describes.
        towers: modules that make vectors of images; they stay as they are, bit for bit, but for their writers.
        writers: what of them writes to the residual stream of the text model.
        inside: the full name of the text model.
    """

    texts: tuple[str, ...]
    towers: tuple[str, ...]
    writers: tuple[BeforeLayers | BehindLayers, ...]
    inside: str = "model.language_model"

    def check(self, config: PretrainedConfig, model_type: str) -> None:
        """Raises InputError for another text model. ``config`` is that of the text model."""
        found = config.model_type
        require(
            found in self.texts,
            f"the text model inside this {model_type} is of model_type {str(found)[:60]!r}: expected one of "
            f"{', '.join(self.texts)}",
        )

    def named(self, name: str) -> str:
        """The name that a module of the text model (``model.norm``) has in the whole."""
        first, _, rest = name.partition(".")
        return f"{self.inside}.{rest}" if first == "model" else name

    def tower_of(self, name: str) -> str | None:
        """The tower that a tensor or module belongs to; None: it belongs to none."""
        return next((tower for tower in self.towers if name.startswith(f"{tower}.")), None)

    def holds(self, name: str) -> bool:
        """Whether a tensor or module is of a tower."""
        return self.tower_of(name) is not None

    def found(self, model: nn.Module) -> dict[str, int]:
        """All linears of towers that write to the residual stream, and the layer whose R1 each takes."""
        return {name: layer for writer in self.writers for name, layer in writer.found(model).items()}
