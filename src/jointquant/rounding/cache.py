"""Pass 2, inside one layer: the basis of its keys and the mean of its values, found at the attention seam."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from itertools import chain

import torch
from torch import Tensor, nn

from jointquant.activations.substitution import substituted
from jointquant.backend.operations import double, runs_on
from jointquant.distributed.ranks import ALONE, Ranks
from jointquant.models.architecture import Architecture
from jointquant.models.transforms import linear_bias, linear_weight, set_bias
from jointquant.quantization.balancing import BALANCINGS
from jointquant.quantization.ranges import ChannelMean, DynamicRange
from jointquant.recipe.rotations import LearnedRotation
from jointquant.recipe.training import training_of
from jointquant.rotations import merging
from jointquant.rotations.hadamard import HadamardTransform
from jointquant.rotations.learning import initial_heads, learn_heads
from jointquant.rotations.sampling import TokenSample
from jointquant.rounding.demand import calibrates_cache
from jointquant.rounding.layer import LayerInWork
from jointquant.rounding.stand_ins import plain_inputs, unread
from jointquant.runtime.key_basis import KEY_BASIS, KEY_MEAN, QUERY_BASIS
from jointquant.seeds import generator


@torch.no_grad()
def calibrate_cache(layer: LayerInWork) -> None:
    """Find the buffers of a layer's attention and centre its values, in place; its weights are not yet rounded.

    Queries, keys and values are those that the quantized layers before this one lead to; the layer itself runs
    unquantized meanwhile.
    """
    recipe, states, basis = layer.recipe, layer.states, layer.assembly.online.keys
    value = layer.architecture.value
    if value is None or not calibrates_cache(layer.assembly):
        return
    attention = layer.module.get_submodule(layer.architecture.attention)
    r3, tokens = recipe.rotations.r3, states.num_windows * states.seqlen
    share = r3.num_tokens / tokens if isinstance(r3, LearnedRotation) else 0.0
    seen = CacheSums(share, generator(recipe.calibration.seed, f"r3 sample {layer.index}"), states.ranks)
    seen.sample.expect(states.token_parts())
    behind = [site.linears for site in layer.architecture.sites if value.linear not in site.linears]
    unused = unread(layer.module, layer.architecture, chain.from_iterable(behind))
    with unused, plain_inputs(layer.module), seen_by(layer.module, layer.architecture, seen):
        layer.observe()
    seen.share()
    if basis is not None:
        wanted = basis.buffers(next(layer.module.parameters()).dtype)
        found = key_basis(seen, layer, basis.dense, next(iter(wanted.values())).dtype)
        for name in wanted:
            setattr(attention, name, found[name].to(states.device))
    if recipe.kv_cache.centres_values:
        centre_values(layer.module, layer.architecture, seen.values.mean().view(seen.kv_heads, seen.head_dim))


class CacheSums:
    """Stands where a cache path stands: sums up first and second moments, samples keys, and changes nothing.

    Args:
        share: of the tokens whose keys are kept.
        rng: chooses them.
        ranks: see the other tokens.

    Attributes:
        query_moments: Σ qᵀq [kv_heads, head_dim, head_dim] over tokens and the query heads of each KV head, float64.
        key_moments: Σ kᵀk of the same shape.
        tokens: how many there were.
    """

    def __init__(self, share: float, rng: torch.Generator, ranks: Ranks = ALONE) -> None:
        self.sample, self.keys, self.values = TokenSample(share, rng, ranks), ChannelMean(), ChannelMean()
        self.ranks = ranks
        self.query_moments: Tensor | None = None
        self.key_moments: Tensor | None = None
        self.tokens = self.group = 0

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, buffers: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """All [batch, heads, tokens, head_dim]."""
        self.kv_heads, self.head_dim = key.shape[1], key.shape[3]
        keys = key.transpose(1, 2).flatten(2)  # [batch, tokens, kv_heads · head_dim]
        self.keys.update(keys)
        self.values.update(value.transpose(1, 2).flatten(2))
        self.sample.update(keys)
        self.tokens += keys.shape[0] * keys.shape[1]
        self.group = query.shape[1] // self.kv_heads
        queries = query.unflatten(1, (self.kv_heads, -1)).transpose(0, 1).flatten(1, 3)  # [kv_heads, rows, head_dim]
        self.query_moments = _add(self.query_moments, queries)
        self.key_moments = _add(self.key_moments, key.transpose(0, 1).flatten(1, 2))
        return query, key, value

    def share(self) -> None:
        """From now on all sums are over the tokens that all ranks have seen."""
        assert self.query_moments is not None
        assert self.key_moments is not None
        self.keys.share(self.ranks)
        self.values.share(self.ranks)
        self.query_moments, self.key_moments = self.ranks.sum(self.query_moments), self.ranks.sum(self.key_moments)
        self.tokens = sum(self.ranks.ask(self.tokens))


def _add(total: Tensor | None, rows: Tensor) -> Tensor:
    rows = double(rows)
    moments = rows.mT @ rows
    return moments if total is None else total + moments


def key_basis(seen: CacheSums, layer: LayerInWork, dense: bool, dtype: torch.dtype) -> dict[str, Tensor]:
    """The mean key [kv_heads, head_dim], and A and A⁻ᵀ [kv_heads, head_dim, head_dim] where the basis is ``dense``.

    All in ``dtype``; A⁻ᵀ is the inverse of A as it is stored.
    """
    assert seen.query_moments is not None
    assert seen.key_moments is not None
    recipe = layer.recipe
    mean = seen.keys.mean().view(seen.kv_heads, seen.head_dim)
    if not recipe.kv_cache.centres_keys:
        mean = torch.zeros_like(mean)
    if not dense:
        return {KEY_MEAN: mean.to(dtype)}
    basis = torch.eye(seen.head_dim, dtype=mean.dtype, device=mean.device).expand(seen.kv_heads, -1, -1)
    if recipe.kv_cache.balancing != "none":
        keys = seen.key_moments / seen.tokens - mean.unsqueeze(-1) * mean.unsqueeze(-2)
        queries = seen.query_moments / (seen.tokens * seen.group)
        basis = BALANCINGS[recipe.kv_cache.balancing](queries, keys)
    basis = (basis @ head_rotation(seen, layer, mean, basis).to(basis)).to(dtype)
    inverse = torch.linalg.inv(double(basis).to(runs_on(basis.device, "solve")))
    return {KEY_MEAN: mean.to(dtype), KEY_BASIS: basis, QUERY_BASIS: inverse.mT.contiguous().to(dtype)}


def head_rotation(seen: CacheSums, layer: LayerInWork, mean: Tensor, basis: Tensor) -> Tensor:
    """R3 of each KV head [kv_heads, head_dim, head_dim] float64, for keys that are centred and in their basis."""
    recipe, index = layer.recipe, layer.index
    settings, seed = recipe.rotations.r3, recipe.calibration.seed
    if not isinstance(settings, LearnedRotation):
        size = seen.head_dim
        identity = torch.eye(size, dtype=torch.float64)
        turn = HadamardTransform.of_size(size).apply(identity) if settings.kind == "hadamard" else identity
        return turn.expand(seen.kv_heads, -1, -1)
    fmt = recipe.kv_cache.of_keys.format
    quantizer = None if fmt is None else DynamicRange(fmt, recipe.kv_cache.of_keys.clip_ratio)
    samples = seen.sample.take().unflatten(-1, (seen.kv_heads, seen.head_dim)).transpose(0, 1)
    samples = (samples - mean.unsqueeze(1).to(samples)) @ basis.to(samples)
    initial = initial_heads(settings.init, seen.kv_heads, seen.head_dim, generator(seed, f"r3 {index}"))
    with torch.enable_grad():
        batches = generator(seed, f"r3 {index} batches")
        learned = learn_heads(samples, initial, training_of(settings, quantizer), batches, seen.ranks)
    layer.undone[f"r3.{index}"] = learned.undone
    return learned.rotation


@torch.no_grad()
def centre_values(layer: nn.Module, architecture: Architecture, mean: Tensor) -> None:
    """b_v ← b_v − c and b_o ← b_o + W_o c: attention weights sum to one, so the function stays, in place.

    Args:
        layer: the layer; both linears have biases.
        architecture: its family.
        mean: c [kv_heads, head_dim].
    """
    assert architecture.value is not None
    value, output = layer.get_submodule(architecture.value.linear), layer.get_submodule(architecture.output)
    queries = linear_weight(output).shape[1]
    bias = double(linear_bias(value))
    bias[architecture.value.rows(queries, mean.numel())] -= mean.flatten().to(bias)
    set_bias(value, bias)
    heads = mean.unsqueeze(1).expand(-1, queries // mean.numel(), -1).flatten()  # [heads · head_dim]
    set_bias(output, merging.shift_input(linear_weight(output), linear_bias(output), heads))


def seen_by(layer: nn.Module, architecture: Architecture, seen: object) -> AbstractContextManager[None]:
    """While open, ``seen`` stands in the place of the attention's cache path."""
    return substituted(layer, values={architecture.attention: {"cache_path": seen}})
