"""What comes before the first layer: the embeddings, and what the model's own forward hands to each layer."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from jointquant.models.architecture import Architecture
from jointquant.models.layer import LayerArguments, Place, text_config_of
from jointquant.models.transforms import centre_rows, rotate_reader


class Frontend:
    """The model's own forward up to the first decoder layer: embeddings, positions, masks.

    The decoder layers are stand-ins that record what the model hands to each of them, so families whose layers
    differ (sliding windows, several rotary embeddings) need no code here. Towers are left out:
    texts hold no images.

    Args:
        model: without values.
        architecture: its family.
        place: where it runs, once it is filled.
    """

    def __init__(self, model: PreTrainedModel, architecture: Architecture, place: Place) -> None:
        root = architecture.layers.partition(".")[0]
        skeleton = model.get_submodule(root)
        layers = _relative(architecture.layers, root)
        norm = _relative(architecture.final_norm, root)
        memo: dict[int, Any] = {id(each): each for each in (model.config, text_config_of(model.config))}
        towers = () if architecture.wrapper is None else architecture.wrapper.towers
        memo |= {id(model.get_submodule(tower)): nn.Identity() for tower in towers}
        memo[id(skeleton.get_submodule(layers))] = nn.ModuleList(
            Recorder(layer) for layer in skeleton.get_submodule(layers)
        )
        memo[id(skeleton.get_submodule(norm))] = nn.Identity()
        self.root = root
        self.place = place
        self.backbone = copy.deepcopy(skeleton, memo)
        self.recorders: list[Recorder] = list(self.backbone.get_submodule(layers))

    def fill(self, tensors: dict[str, Tensor]) -> None:
        """Give it its tensors, by their names in the backbone, as they are computed with."""
        self.backbone.load_state_dict(tensors, assign=True)
        for module in self.backbone.modules():
            fill_scale(module, torch.empty(0, dtype=self.place.dtype))

    def module(self, name: str) -> nn.Module:
        """A module of the frontend by its full name in the model."""
        return self.backbone.get_submodule(_relative(name, self.root))

    def replace(self, name: str, module: nn.Module) -> None:
        """Put another module in the place of one, by its full name in the model."""
        self.backbone.set_submodule(_relative(name, self.root), module)

    @torch.no_grad()
    def hidden_states(self, input_ids: Tensor) -> Tensor:
        """What reaches the first decoder layer: input_ids [windows, tokens] → [windows, tokens, hidden]."""
        self.backbone(input_ids=input_ids.to(self.place.device), use_cache=False)
        return self.recorders[0].take()[0]

    @torch.no_grad()
    def layer_arguments(self, input_ids: Tensor) -> list[LayerArguments]:
        """What each decoder layer receives besides its hidden states, for windows of the length of ``input_ids``.

        Taken from a single window, so that it broadcasts over any number of them.
        """
        self.backbone(input_ids=input_ids[:1].to(self.place.device), use_cache=False)
        return [recorder.take()[1] for recorder in self.recorders]


class Recorder(nn.Module):
    """Stands for a decoder layer: records its arguments and passes the hidden states through."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        for name, value in vars(layer).items():
            if isinstance(value, (str, int, float, bool)):
                setattr(self, name, value)  # e.g. attention_type, which some models read off their layers
        self._recorded: tuple[Tensor, LayerArguments] | None = None

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        """Record and pass through."""
        self._recorded = (hidden_states, kwargs)
        return hidden_states

    def take(self) -> tuple[Tensor, LayerArguments]:
        """The last call's hidden states and arguments; forgets them."""
        if self._recorded is None:
            raise RuntimeError("the model's forward never reached this decoder layer")
        recorded, self._recorded = self._recorded, None
        return recorded


def fill_scale(module: nn.Module, like: Tensor) -> None:
    """What an embedding multiplies its rows by, if it does, as a model that is loaded in the dtype of ``like``."""
    factor = getattr(module, "scalar_embed_scale", None)
    if factor is not None:
        module.embed_scale = torch.tensor(factor, dtype=like.dtype, device=like.device)


def _relative(name: str, root: str) -> str:
    return name.removeprefix(f"{root}.")


@torch.no_grad()
def centre_embeddings(frontend: Frontend, architecture: Architecture) -> None:
    """Embedding rows less their mean, for families whose norms subtract it; others are left as they are.

    The norms see no difference, and fused they no longer subtract it.
    """
    if architecture.norm.subtracts_mean:
        for name in architecture.embeddings:
            centre_rows(frontend.module(name))


@torch.no_grad()
def rotate_embeddings(frontend: Frontend, architecture: Architecture, r1: Tensor) -> None:
    """E ← E R1 for everything that starts the residual stream."""
    for name in architecture.embeddings:
        rotate_reader(frontend.module(name), r1)
