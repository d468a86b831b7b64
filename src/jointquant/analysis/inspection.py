"""What rotations and rounding do to a model, measured layer by layer on a few windows.

The unquantized model runs beside the quantized one, in lock-step: one layer of each is in memory, with the probe's
hidden states and nothing else. Rotations are applied to the activations themselves, as x → xR.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from jointquant.activations.hidden_states import HiddenStates, micro_batch
from jointquant.activations.propagation import Observer, Observers, advance, observe, watching
from jointquant.activations.unquantized import Unquantized
from jointquant.analysis.moments import ErrorSum, Spread, SpreadSum
from jointquant.models.architecture import Site
from jointquant.models.layer import LayerArguments, Place
from jointquant.models.stream import ModelStream
from jointquant.models.transforms import latent_rotation
from jointquant.planning.workload import PROBE_TOKENS
from jointquant.progress import Progress
from jointquant.rotations.bundle import Rotations
from jointquant.rounding.cache import seen_by
from jointquant.run.workspace import Workspace
from jointquant.runtime.assembly import Assembly
from jointquant.runtime.linear import OnlineLinear, PackedLinear
from jointquant.runtime.online import OnlineTransforms

CACHES = ("k_cache", "v_cache")

Rotate = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class SiteSpread:
    """The values at one site of one layer, before and after rotation; ``tokens`` are those that were seen there.

    An expert that no token of the probe reaches has none.
    """

    layer: int
    site: str
    tokens: int
    before: Spread
    after: Spread

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SiteSpread:
        """Of its plain data."""
        return cls(**{**data, "before": Spread(**data["before"]), "after": Spread(**data["after"])})


@dataclass(frozen=True)
class LayerError:
    """Relative squared errors of one quantized layer.

    Attributes:
        layer: which one.
        hidden: of its output hidden state, all layers before it quantized too.
        weights: of each linear's rounded weight.
        activations: of each linear's quantized input, 0 where it is not quantized.
    """

    layer: int
    hidden: float
    weights: dict[str, float]
    activations: dict[str, float]


class Probe:
    """Some windows on their way through the unquantized model, and what its sites see of them.

    Args:
        stream: the model.
        merges_gains: whether its norms are fused, so that sites see what they see in the quantized model.
        windows: token ids [n, T], of which a few are taken.
        place: where layers run.
    """

    def __init__(self, stream: ModelStream, merges_gains: bool, windows: Tensor, place: Place) -> None:
        self.windows = windows[: micro_batch(windows.shape[1], PROBE_TOKENS)]
        self.states = Workspace(place).states(self.windows, stream.config.hidden_size)
        self.model = Unquantized(stream, merges_gains, self.windows, self.states, place)

    def run(self, rotations: Rotations, online: OnlineTransforms) -> list[SiteSpread]:
        """Take the probe through the next layer; what its sites see, as it is and rotated."""
        stream, index, layer = self.model.stream, self.model.done, self.model.next_layer()
        rotates = site_rotations(stream, index, rotations, online)
        sums = {site: (SpreadSum(), SpreadSum()) for site in rotates}

        def observer(site: str) -> Callable[[Tensor], None]:
            def update(x: Tensor) -> None:
                sums[site][0].update(x)
                sums[site][1].update(rotates[site](x))

            return update

        places = {site.readers[0]: observer(site.name) for site in stream.architecture_of(index).whole_sites}
        with ExitStack() as stack:
            stack.enter_context(watching(layer, places))
            if set(CACHES) <= set(rotates):
                cache = CacheObserver(*(observer(name) for name in CACHES))
                stack.enter_context(seen_by(layer, stream.architecture_of(index), cache))
            self.model.advance(layer)
        return [SiteSpread(index, site, a.tokens, a.result(), b.result()) for site, (a, b) in sums.items() if a.tokens]


@dataclass(frozen=True)
class CacheObserver:
    """Stands where a cache path stands in the attention seam: sees keys and values, and changes nothing."""

    key: Observer
    value: Observer

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, buffers: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """All [batch, heads, tokens, head_dim]."""
        self.key(key)
        self.value(value)
        return query, key, value


def site_rotations(
    stream: ModelStream, index: int, rotations: Rotations, online: OnlineTransforms
) -> dict[str, Rotate]:
    """By site, what the rotations of layer ``index`` do to what it reads; the identity where there is none."""
    r1, r2 = rotations.r1_of(index), rotations.r2_of(index)
    rotates: dict[str, Rotate] = {}
    architecture = stream.architecture_of(index)
    for site in architecture.whole_sites:
        if site.reads_residual and r1 is not None:
            rotates[site.name] = _times(r1)
        elif site.latent is not None and r1 is not None:
            rotates[site.name] = _times(latent_rotation(_inputs_of(stream, index, site)))
        elif architecture.output in site.linears and r2 is not None:
            rotates[site.name] = lambda x, r2=r2: rotate_heads(x, r2)  # type: ignore[misc]
        elif site.linears[0] in architecture.downs and (r4 := online.r4.get(_inputs_of(stream, index, site))):
            rotates[site.name] = r4.apply
        else:
            rotates[site.name] = _same
    if architecture.latent_sites:  # its cache holds what the last of them reads
        return rotates
    rotates["k_cache"] = _same if online.r3 is None else online.r3.apply
    rotates["v_cache"] = _same if r2 is None else _times(r2)  # [batch, kv_heads, T, d] @ [kv_heads, d, d]
    return rotates


def _inputs_of(stream: ModelStream, index: int, site: Site) -> int:
    linear = stream.skeleton.get_submodule(f"{stream.architecture.layer_prefix(index)}.{site.linears[0]}")
    assert isinstance(linear, nn.Linear)
    return linear.in_features


def rotate_heads(x: Tensor, r2: Tensor) -> Tensor:
    """o_proj's input [..., heads · d], each query head by its KV head's rotation: r2 [kv_heads, d, d]."""
    heads = x.unflatten(-1, (r2.shape[0], -1, r2.shape[1]))  # [..., kv_heads, group, d]
    return (heads @ r2.to(x)).flatten(-3)


def _same(x: Tensor) -> Tensor:
    return x


def _times(rotation: Tensor) -> Rotate:
    return lambda x: x @ rotation.to(x)


def inspect_activations(
    stream: ModelStream,
    merges_gains: bool,
    windows: Tensor,
    place: Place,
    rotations: Rotations,
    online: OnlineTransforms,
    progress: Progress,
) -> list[SiteSpread]:
    """The values at every site of every layer of the unquantized model, before and after rotation."""
    probe = Probe(stream, merges_gains, windows, place)
    spreads: list[SiteSpread] = []
    with progress.stage("measure", stream.num_layers) as stage:
        for _ in range(stream.num_layers):
            spreads += probe.run(rotations, online)
            stage.advance()
    return spreads


class Inspector:
    """Watches pass 2 of one recipe; a ``Witness``.

    Attributes:
        spreads: of the activations, before and after rotation.
        errors: of each quantized layer.
        seconds: how long the measurements took.
    """

    def __init__(self, stream: ModelStream, assembly: Assembly, rotations: Rotations, windows: Tensor, place: Place):
        self.stream, self.assembly, self.rotations = stream, assembly, rotations
        self.spreads: list[SiteSpread] = []
        self.errors: list[LayerError] = []
        self.seconds = 0.0
        self.exact: dict[str, Tensor] = {}  # the layer's weights before rounding
        with self._timed():
            self.probe = Probe(stream, assembly.recipe.merges_gains, windows, place)

    @contextmanager
    def _timed(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - start

    def resume(self, facts: list[dict[str, Any]]) -> None:
        """Go on behind the layers that are done, with what was found out about them; the probe passes them anew."""
        with self._timed():
            for found in filter(None, facts):  # nothing is known of a layer that a run without a witness has done
                self.spreads += [SiteSpread.from_dict(spread) for spread in found["spreads"]]
                self.errors.append(LayerError(**found["error"]))
            self.probe.model.skip(len(facts))

    def facts(self, index: int) -> dict[str, Any]:
        """The spreads and errors of a layer."""
        spreads = [asdict(spread) for spread in self.spreads if spread.layer == index]
        return {"spreads": spreads, "error": asdict(self.errors[-1])}

    def merged(self, index: int, layer: nn.Module) -> None:
        """Keep the layer's weights as they are before rounding."""
        with self._timed():
            weights = {name: layer.get_submodule(name).weight for name in self.assembly.layers[index].linears}
            self.exact = {name: weight.detach().clone() for name, weight in weights.items()}  # type: ignore[operator]

    @torch.no_grad()
    def rounded(self, index: int, layer: nn.Module, states: HiddenStates, arguments: LayerArguments) -> None:
        """Run the probe through the layer and through its unquantized twin, and compare."""
        with self._timed():
            self.spreads += self.probe.run(self.rotations, self.assembly.online)
            weights = {}
            for name, exact in self.exact.items():
                weights[name] = relative_error(rounded_weight(layer.get_submodule(name), exact.dtype), exact)
            self.exact = {}
            output = states.first(len(self.probe.windows))
            quantized = HiddenStates.held(output)
            activations = input_errors(layer, self.assembly.layers[index].linears, quantized, arguments)
            advance(layer, quantized, arguments)
            r1 = self.rotations.r1_of(min(index + 1, self.stream.num_layers - 1))
            output = output if r1 is None else output @ r1.to(output).T
            hidden = relative_error(output, self.probe.states.first(len(self.probe.windows)))
            self.errors.append(LayerError(index, hidden, weights, activations))


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """‖actual − expected‖² / ‖expected‖²."""
    total = ErrorSum()
    total.update(actual, expected)
    return total.value


def rounded_weight(linear: nn.Module, dtype: torch.dtype) -> Tensor:
    """What a linear of a quantized layer multiplies with: [out, in]."""
    if isinstance(linear, PackedLinear):
        return linear.quantized_weight().dequantize(dtype)
    assert isinstance(linear, nn.Linear)
    return linear.weight


def input_errors(
    layer: nn.Module, linears: tuple[str, ...], states: HiddenStates, arguments: LayerArguments
) -> dict[str, float]:
    """By linear, the relative squared error that quantizing its (rotated) input makes; 0 without a quantizer."""
    sums = {name: ErrorSum() for name in linears}

    def observer(name: str) -> Callable[[Tensor], None]:
        module, total = layer.get_submodule(name), sums[name]

        def update(x: Tensor) -> None:
            if isinstance(module, OnlineLinear | PackedLinear):
                total.update(module.read(x), module.arriving(x))

        return update

    observers: Observers = {name: observer(name) for name in linears}
    with watching(layer, observers):
        observe(layer, states, arguments)
    return {name: total.value for name, total in sums.items()}
