"""Pass 1, SmoothQuant: how large the channels of each layer's sites are becomes the scales that they get."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from jointquant.activations.hidden_states import HiddenStates
from jointquant.activations.propagation import Observers
from jointquant.activations.routing import all_tokens_for, routed_tokens, starved
from jointquant.backend.operations import double
from jointquant.distributed.ranks import ALONE, Ranks
from jointquant.models.architecture import Architecture, Site
from jointquant.models.layer import LayerArguments
from jointquant.models.slices import LinearSlice, Rows
from jointquant.models.stream import ModelStream
from jointquant.models.transforms import linear_weight
from jointquant.quantization.smoothing import MEASURES, Sizes, smoothing_scales
from jointquant.recipe.recipe import Recipe


class Smoother:
    """Watches the sites whose scales cost nothing at run time, and chooses these scales layer by layer.

    Those are o_in and down_in, which linears feed channel by channel, and without R1 also the sites behind norms.

    Attributes:
        layers: of each layer that has run, the scales by site, as ``models.scaling`` takes them.
    """

    def __init__(self, stream: ModelStream, recipe: Recipe, ranks: Ranks = ALONE) -> None:
        assert recipe.smoothing.alpha is not None
        self.alpha, self.measure = recipe.smoothing.alpha, MEASURES[recipe.smoothing.measure]
        self.stream, self.divides_norms, self.ranks = stream, not recipe.merges_gains, ranks
        self.layers: list[dict[str, Tensor]] = []
        self.sizes: dict[str, Sizes] = {}
        self.layer: nn.Module | None = None

    @property
    def architecture(self) -> Architecture:
        """That of the layer that is next."""
        return self.stream.architecture_of(len(self.layers))

    @property
    def sites(self) -> tuple[Site, ...]:
        """Those of the layer that is next; they are scaled whole, so all experts share the scales behind a norm."""
        return tuple(site for site in self.architecture.scalable_sites if site.norm is None or self.divides_norms)

    def observers(self) -> Observers:
        """At the first reader of each site."""
        return {site.readers[0]: self.sizes[site.name].update for site in self.sites}

    def before(
        self, layer: nn.Module, states: HiddenStates, arguments: LayerArguments
    ) -> AbstractContextManager[object]:
        """Forget the last layer; experts that see too few tokens read all of them until this one has run."""
        self.layer, counts = layer, routed_tokens(layer, states, arguments)
        fed = [(m.up, m.down) for m in self.architecture.mlps]
        if self.architecture.value is not None:
            fed.insert(0, (self.architecture.value, self.architecture.output))
        names = {linear: site.name for site in self.architecture.inner_sites for linear in site.linears}
        self.fed: dict[str, list[tuple[LinearSlice, str]]] = {}
        for part, reader in fed:
            self.fed.setdefault(part.linear, []).append((part, names[reader]))
        self.sizes = {site.name: self.measure.inputs() for site in self.sites}
        return all_tokens_for(layer, starved(layer, counts))

    def after(self, index: int) -> None:
        """Choose the layer's scales, those that divide rows of a later site's readers first."""
        scales: dict[str, Tensor] = {}
        for site in sorted(self.sites, key=lambda site: site.norm is not None):
            self.sizes[site.name].share(self.ranks)
            activations, weights = self.sizes[site.name].sizes().cpu(), self.weights_of(site, scales).cpu()
            if self.architecture.value is not None and self.architecture.output in site.linears:
                groups = self.stream.num_key_value_heads, -1, self.stream.head_dim
                activations, weights = (self.measure.norm(x.unflatten(0, groups), 1) for x in (activations, weights))
            scales[site.name] = smoothing_scales(activations, weights, self.alpha)
        self.layers.append(scales)
        self.layer = None

    def record(self) -> dict[str, Tensor]:
        """The last layer's scales by site."""
        return self.layers[-1]

    def state(self) -> dict[str, Tensor]:
        """Nothing besides the records."""
        return {}

    def restore(self, records: list[dict[str, Tensor]], state: dict[str, Tensor]) -> None:
        """The scales of the layers so far."""
        self.layers = list(records)

    def weights_of(self, site: Site, scales: dict[str, Tensor]) -> Tensor:
        """|W_j| [in] over the site's readers, whose rows ``scales`` divide where they feed a site of those."""
        assert self.layer is not None
        found: list[Tensor] = []
        for name in site.linears:
            rows = double(linear_weight(self.layer.get_submodule(name)))  # [out, in]
            for part, scale in self._dividing(name, scales):
                rows[part] /= scale.to(rows).unsqueeze(1)
            found.append(self.measure.norm(rows, 0))
        return self.measure.norm(torch.stack(found), 0)

    def _dividing(self, linear: str, scales: dict[str, Tensor]) -> list[tuple[Rows, Tensor]]:
        """The rows of ``linear`` that are divided, and by what."""
        found = []
        for part, site in self.fed.get(linear, []):
            if site in scales:
                scale = scales[site].flatten()
                heads = self.stream.config.num_attention_heads * self.stream.head_dim
                found.append((part.rows(heads, len(scale)), scale))
        return found
