"""Pass 2, inside one layer, before its inputs are calibrated: the learned part of R4, one set a down projection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from jointquant.devices import double
from jointquant.exact_activations import plain_inputs
from jointquant.hidden_states import HiddenStates
from jointquant.learners import quantizer_of, training_of
from jointquant.models.stream import LayerArguments
from jointquant.models.transforms import map_rows
from jointquant.propagation import observe, watching
from jointquant.ranks import ALONE, Ranks
from jointquant.recipe import LearnedInnerRotation
from jointquant.rotations import merging
from jointquant.rotations.learning import learn_blocks
from jointquant.runtime.assembly import Assembly
from jointquant.runtime.inner_rotation import as_integers, matrices
from jointquant.runtime.linear import OnlineLinear
from jointquant.seeds import generator
from jointquant.stand_ins import unread

KEY_BITS, KEY_CHANNELS = 62, 4
MULTIPLIER = 6364136223846793005
"""D. Knuth's (MMIX) of a linear congruential generator modulo 2^64."""


@torch.no_grad()
def learn_inner_rotations(
    layer: nn.Module, index: int, assembly: Assembly, states: HiddenStates, arguments: LayerArguments
) -> None:
    """Learn the rotations of a layer's down projections, fill their buffers and turn their weights, in place.

    The inputs are those that the quantized layers before this one lead to, not quantized themselves; where inputs are
    centred, so are the tokens that are learned on. A down projection that no token reaches, or one alone, keeps the
    identities.

    Args:
        layer: the layer, its paths installed, its weights not yet rounded.
        index: which one it is.
        assembly: how it was built.
        states: those before the layer.
        arguments: what the layer receives besides.
    """
    settings, seed = assembly.recipe.rotations.r4, assembly.recipe.calibration.seed
    if not isinstance(settings, LearnedInnerRotation):
        return
    share = settings.num_tokens / (states.num_windows * states.seqlen)
    downs = {name: layer.get_submodule(name) for name in assembly.layers[index].downs}
    samples = {name: DrawnTokens(share, seed) for name in downs}
    watched = {name: _rotated(downs[name], sample.update) for name, sample in samples.items()}
    with plain_inputs(layer), unread(layer, assembly.layers[index], downs), watching(layer, watched):
        observe(layer, states, arguments)
    for name, down in downs.items():
        assert isinstance(down, OnlineLinear)
        full_name = assembly.full_name(index, name)
        activations = assembly.recipe.activations_of(full_name)
        sample = samples.pop(name).take(states.ranks)
        if sample is not None and activations.centring != "none":
            sample = sample.sub_(sample.mean(0))
        if sample is None or not sample.any():  # of one token, less its mean, nothing is left
            continue
        training, start = training_of(settings, quantizer_of(activations)), matrices(down.input_rotation, sample.dtype)
        with torch.enable_grad():
            batches = generator(seed, f"r4 {full_name} batches")
            found = learn_blocks(sample, start, training, batches, states.ranks).rotation
        turn_input(down, found)


@torch.no_grad()
def turn_input(down: OnlineLinear, rotations: Tensor) -> None:
    """Let a linear read its input turned by rotations [blocks, b, b], as they are kept: the same function."""
    down.input_rotation = as_integers(rotations).to(down.input_rotation.device)
    integers = double(down.input_rotation)
    kept = matrices(integers, integers.dtype)
    map_rows(down, lambda weight: merging.transform_input_blocks(weight, kept))


def _rotated(down: Any, observer: Callable[[Tensor], None]) -> Callable[[Tensor], None]:
    """Observe an input behind the Hadamard transform."""
    return lambda x: observer(down.path.transform.unrounded(x))


class DrawnTokens:
    """Keeps the tokens whose own digits say so: the same ones however they are batched, routed or shared out.

    Args:
        share: the part of the tokens that is kept, on average; 1 or more keeps all.
        seed: with another one, others are kept.
    """

    def __init__(self, share: float, seed: int) -> None:
        self.share, self.seed = share, seed
        self.kept: list[tuple[Tensor, Tensor]] = []  # keys and rows

    def update(self, x: Tensor) -> None:
        """Take in the tokens of x: [..., n]."""
        rows = x.reshape(-1, x.shape[-1]).float()
        keys = token_keys(rows, self.seed)
        if self.share < 1:
            chosen = (keys < int(self.share * 2**KEY_BITS)).nonzero().squeeze(-1)
            keys, rows = keys[chosen], rows[chosen]
        self.kept.append((keys, rows.clone()))

    def take(self, ranks: Ranks = ALONE) -> Tensor | None:
        """Tokens of all ranks, [tokens, n] float32 in the order of their keys, on each rank; None: there are none."""
        kept, self.kept = self.kept, []
        if ranks.size > 1:
            device = kept[0][1].device if kept else torch.device("cpu")
            every = ranks.ask([(keys.cpu(), rows.cpu()) for keys, rows in kept])
            kept = [(keys.to(device), rows.to(device)) for own in every for keys, rows in own]
        if not sum(len(keys) for keys, _ in kept):
            return None
        order = torch.cat([keys for keys, _ in kept]).argsort(stable=True)
        return torch.cat([rows for _, rows in kept])[order]


def token_keys(rows: Tensor, seed: int) -> Tensor:
    """int64 [tokens] in [0, 2^62), as good as random, of the first channels of tokens [tokens, n] float32."""
    digits = rows[:, :KEY_CHANNELS].contiguous().view(torch.int32).to(torch.int64)
    keys = torch.full((len(rows),), seed + 1, dtype=torch.int64, device=rows.device)
    for column in digits.unbind(1):
        keys = (keys ^ column) * MULTIPLIER + 1442695040888963407  # wraps around
        keys = keys ^ (keys >> 29)
    return keys & (2**KEY_BITS - 1)
