"""Every key of a recipe with its default, what it takes and what it means: the table of docs/recipes.md."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from operator import attrgetter
from typing import Any

from pydantic_core import PydanticUndefined

from jointquant.recipe.keys import Key, keys_of
from jointquant.recipe.recipe import Recipe, load_recipe
from jointquant.recipe.sizes import read_size, size_names

PER_TRAINING = ("num_tokens", "batch_tokens", "steps")
"""What a size sets of a rotation that is learned."""

MEANINGS = {
    "description": "words for `jointquant recipes`",
    "rotations.from": "an artifact, or its rotations.safetensors: take R1 and R2 from there",
    "rotations.r1.from": "a file that holds R1, ours or another program's (docs/rotations.md); before `rotations.from`",
    "rotations.r2.from": "the same for the R2s",
    "rotations.r1.kind": "the residual stream's rotation",
    "rotations.r2.kind": "the values' rotation, per KV head",
    "rotations.r3.kind": "the queries' and keys' rotation, online",
    "rotations.r4.kind": "the rotation of down_proj's input, online",
    "rotations.r1.strategy": "how the layers share R1",
    "rotations.r1.weights": "what a layer counts in `joint`; null: normalised",
    "rotations.r4.objective": "what training minimises; of `butterfly` also `reconstruction`, its default",
    "rotations.r4.learning_rate": "as of R1; of `butterfly` Adam's, in radians (0.02)",
    "rotations.r4.block_size": "order of the Hadamard blocks; null: the largest; `power_of_two`: the largest 2^n",
    "rotations.r4.most": "channels that are turned together behind it: the largest divisor of the size up to this",
    "rotations.r4.num_tokens": "down_proj's inputs sampled in each layer, on average",
    "*.scale_dtype": "what scales are rounded to and stored in; null: the model's dtype",
    "*.objective": "what training minimises",
    "*.optimizer": "how it stays orthogonal",
    "*.init": "where training starts",
    "rotations.r1.num_tokens": "tokens sampled, over all layers and both residual sites",
    "rotations.r2.num_tokens": "tokens sampled in each layer",
    "*.steps": "training steps (`greedy`: in all; `independent`: of each layer)",
    "*.batch_tokens": "tokens of a batch",
    "*.learning_rate": "in units of Whip, for all objectives; `newton_schulz`, `qr_adam`: the first step's angle",
    "*.momentum": "of the optimiser",
    "*.tolerance": "in its second half, training ends when 10 steps lower the loss by less than this part; 0: never",
    "*.gradient_clip": "longer gradients (Frobenius norm of a matrix, in units of Whip) are cut to this; null: none",
    "*.accumulation": "batches of a step, whose gradients are averaged",
    "*.first_share": "the part of the sampled tokens that training begins with; it grows evenly to all of them",
    "*.epochs": "rounds through the sampled tokens, in place of `steps`, which they are converted to; null: `steps`",
    "*.batch_size": "windows of a batch, each as many tokens as are sampled of it at a site; null: `batch_tokens`",
    "*.num_bits": "2 to 8; 16: not quantized",
    "*.symmetric": "the zero point is 0",
    "*.symmetric_range": "of symmetric grids: all integers, or `restricted` to as many below zero as above (vLLM's)",
    "*.signed_scale": "of symmetric integers: a scale may be negative, so that −2^(b−1) covers the larger end",
    "*.group_size": "values that share a scale; null: a channel's, a token's, or a head's",
    "*.symmetric_scale": "a symmetric scale is max|w| over 7.5, 7 or 8 (of 4 bits), named after who does that",
    "*.groups": "when scales of GPTQ's groups are chosen: before anything is rounded, or when a group's turn comes",
    "*.group_tail": "groups that do not divide a row: refuse; pad the last with zeros (it gets a scale of its "
    "own); or fit: all become smaller, of the largest of 64, 32 and 16 that divides every row",
    "activations.strategy": "what shares a range; `head`: groups of as many channels as a head has",
    "*.clip_ratio": "the range is cut to this share; `search` (activations) finds it for each site",
    "smoothing.alpha": "SmoothQuant's share of the outliers that moves into the weights; null: off",
    "smoothing.measure": "how large channels are: `max`, SmoothQuant's, or `rms`, for sites that are then rotated",
    "activations.centring": "quantize x − μ, the mean input on the calibration set, and add W μ to the bias",
    "kv_cache.centring": "take the calibrated mean from keys, from values, or both; exact",
    "kv_cache.balancing": "a basis in which queries and keys have alike channels, or alike covariances; online, exact",
    "rotations.r3.num_tokens": "keys sampled in each layer",
    "kv_cache.keys": "what keys have of their own: some of num_bits, symmetric, group_size, clip_ratio",
    "kv_cache.values": "what values have of their own",
    "kv_cache.scheme": "whose arithmetic: `affine`, our own; `int4_per_token_head`, that of vLLM's 4-bit cache",
    "*.type": "the grid: integers, or the levels of NF4",
    "*.clip": "search each range for the least error, down to 0.4 of it or (shallow) about 0.8, or take all of it",
    "*.method": "round to nearest, or GPTQ",
    "*.activation_order": "GPTQ rounds the columns of the largest inputs first",
    "*.damping": "GPTQ adds this share of the mean diagonal to the Hessian; tenfold while it is not enough",
    "refinement.steps": "steps a layer, at least, in which the rounding of its weights is learned; 0: off",
    "refinement.rounds": "more steps, where it takes more to see each window so many times",
    "refinement.distance": "a layer's error: squared as it is, or of each token in units of its own length",
    "refinement.hold": "0: weights halfway between two integers are rounded anew first; to 1: all have as far to go",
    "refinement.batch_tokens": "tokens a step, whole windows, one at least",
    "refinement.learning_rate": "of the rounding, in parts of its grid; null: the less of 0.02 and 1.5 / steps",
    "refinement.scale_learning_rate": "of the weights' scales, relative to them",
    "refinement.clip_learning_rate": "of the inputs' clip ratios, where activations.clip_ratio is search",
    "calibration.source": "wikitext2, c4, ptb, hub:NAME[:CONFIG[:SPLIT[:FIELD]]], or a file",
    "calibration.num_samples": "windows of text",
    "calibration.seqlen": "tokens of a window; null: 2048, or what the model reads where that is less",
    "calibration.activations": "inputs and cache while weights are rounded: as they will be, or exact",
    "calibration.rotation_samples": "windows that rotations and smoothing are learned from, the first; null: all",
    "calibration.seed": "seed of every random choice of the run",
    "overrides": "a list of `{modules: PATTERN, weights: {…}, activations: {…}}` for linears by name; later ones win",
}
"""By key, or by a pattern for keys that mean the same everywhere; a key of its own comes before patterns."""


def keys() -> tuple[Key, ...]:
    """Every key of a recipe, in the recipe's order; of a rotation, those of its richest kind."""
    return tuple(keys_of(Recipe))


def meaning_of(key: Key) -> str:
    """What a key is for; empty where nobody has said."""
    patterns = (words for pattern, words in MEANINGS.items() if fnmatchcase(key.name, pattern))
    return MEANINGS.get(key.name) or next(patterns, "")


def key_table() -> list[str]:
    """The lines of the table of keys, in Markdown."""
    lines = ["| key | default | takes | what it sets |", "|-|-|-|-|"]
    for key in keys():
        takes = key.takes.replace("|", "\\|")
        lines.append(f"| `{key.name}` | `{_yaml(key.default)}` | {takes} | {meaning_of(key)} |")
    return lines


def size_table() -> list[str]:
    """The lines of the table of sizes, in Markdown."""
    columns = [("calibration", "num_samples")]
    columns += [(f"rotations.{rotation}", key) for rotation in ("r1", "r2", "r4") for key in PER_TRAINING]
    heads = ["`--size`", "models of", *(f"`{part.rpartition('.')[2]}.{key}`" for part, key in columns)]
    lines = [f"| {' | '.join(heads)} |", "|-" * len(heads) + "|"]
    for name in size_names():
        recipe = load_recipe("w4a4kv4", size=name)
        values = [str(getattr(attrgetter(part)(recipe), key)) for part, key in columns]
        lines.append(f"| {' | '.join([name, read_size(name)['description'], *values])} |")
    return lines


def _yaml(value: Any) -> str:
    return json.dumps(list(value) if isinstance(value, tuple) else value) if value is not PydanticUndefined else "none"
