"""compressed-tensors: what its formats hold, and what transformers and vLLM do with them."""

from __future__ import annotations

from jointquant.artifact.obstacles.anywhere import CLIPPED, activations_off, cache_lost, online
from jointquant.artifact.obstacles.facts import Facts, Obstacle
from jointquant.models.support import NOT_IN_VLLM
from jointquant.quantization.codebook import CodebookFormat
from jointquant.quantization.integer import IntFormat
from jointquant.recipe.settings import ActivationSettings

INT4 = 4
"""Bits of the activations that vLLM multiplies as such."""


def few_bits_in_vllm(facts: Facts) -> bool:
    """Whether vLLM has to quantize inputs or the cache to 4 bits, by what no other runtime has."""
    return facts.recipe.kv_cache.is_vllms or any(settings.num_bits == INT4 for settings in facts.activations())


def compressed_obstacles(facts: Facts) -> list[Obstacle]:
    """What compressed-tensors (pack-quantized, int-quantized, transforms) cannot hold, or nobody runs."""
    found = [*online(facts), *([] if facts.recipe.kv_cache.is_vllms else cache_lost(facts))]
    found += [Obstacle(facts.lost)] * bool(facts.lost)
    found += [*r4_not_expressible(facts), *_expert_obstacles(facts)]
    for settings in facts.activations():
        found += _activation_obstacles(settings)
    found += _int4_weight_obstacles(facts)
    for name, weights in (*(("weights", each) for each in facts.weights()), ("head", facts.recipe.head)):
        if isinstance(weights.format, CodebookFormat):
            found.append(Obstacle(f"weights.type is {weights.type}", "weights.type=int"))
        if weights.enabled and weights.group_tail == "pad":
            found.append(Obstacle(f"{name} may have groups that are cut short", f"{name}.group_tail=refuse"))
    packed = {facts.recipe.weights_of(n).format for n in facts.linears if not facts.recipe.activations_of(n).enabled}
    packed = (packed | {facts.recipe.head.format}) - {None}
    if len(packed) > 1 and any(fmt is not None and fmt.has_zero_point for fmt in packed):
        what = "packed weights on several grids, some asymmetric, which transformers cannot load"
        found.append(Obstacle(what, "weights.symmetric=true head.symmetric=true"))
    mixed = any(
        facts.recipe.activations_of(n).enabled and not facts.recipe.weights_of(n).enabled for n in facts.linears
    )
    if mixed:
        found.append(Obstacle("activations are quantized, but not the weights they meet", activations_off(facts)))
    if facts.recipe.embeddings.enabled:
        found.append(Obstacle("the token embedding is quantized", "embeddings.num_bits=16"))
    return found


def r4_not_expressible(facts: Facts) -> list[Obstacle]:
    """R4 where it is no Sylvester matrix, for transforms of type hadamard have orders 2^n; or where experts read it."""
    if facts.experts and facts.r4:
        return [Obstacle("R4 is online in experts, whose inputs no other runtime transforms", "rotations.r4.kind=none")]
    if facts.r4 and facts.model_type in NOT_IN_VLLM:
        why = NOT_IN_VLLM[facts.model_type]
        return [Obstacle(f"R4 is online, which vLLM alone computes, and {why}", "rotations.r4.kind=none")]
    odd = [transform for transform in facts.r4 if transform.base != 1]
    if not odd:
        return []
    largest = min(transform.size & -transform.size for transform in facts.r4)
    what = f"R4 is no Hadamard transform of order 2^n ({odd[0].describe()})"
    return [Obstacle(what, f"rotations.r4.block_size={largest}")]


def _expert_obstacles(facts: Facts) -> list[Obstacle]:
    """transformers dequantizes experts while it loads them: all of them by one scheme, of packed symmetric weights."""
    if not facts.experts:
        return []
    found = []
    if any(settings.enabled for settings in facts.activations()):
        what = "inputs of experts are quantized, and transformers loads none but packed weights into experts"
        found.append(Obstacle(what, activations_off(facts)))
    formats = {facts.recipe.weights_of(name).format for name in facts.experts}
    if len(formats) > 1:
        found.append(
            Obstacle("experts' weights are on several grids, and transformers reads all by one", "overrides=[]")
        )
    packed = {*(facts.recipe.weights_of(name).format for name in facts.linears), facts.recipe.head.format} - {None}
    if formats == {None} and packed:
        what = "other weights are quantized and experts' are not, which transformers cannot load"
        found.append(Obstacle(what, "overrides=[] head.num_bits=16"))
    if any(fmt is not None and fmt.has_zero_point for fmt in packed):
        what = "weights are asymmetric beside experts, whose zero points transformers does not read"
        found.append(Obstacle(what, "weights.symmetric=true head.symmetric=true"))
    return found


def _activation_obstacles(settings: ActivationSettings) -> list[Obstacle]:
    """Activations have 8 bits, or 4 on vLLM's grid, and the range of each token; or are not quantized."""
    if not settings.enabled:
        return []
    found = []
    if settings.num_bits not in (INT4, 8):
        what = f"activations have {settings.num_bits} bits, and runtimes of compressed-tensors compute with 4, 8 or 16"
        found.append(Obstacle(what, "activations.num_bits=8"))
    if settings.num_bits == INT4 and settings.symmetric_range != "restricted":
        what = "activations of 4 bits are not on vLLM's grid, max|x| / 7 a step"
        found.append(Obstacle(what, "activations.symmetric=true activations.symmetric_range=restricted"))
    if settings.strategy != "token" or settings.group_size is not None:
        what = "activations have other ranges than one a token"
        found.append(Obstacle(what, "activations.strategy=token activations.group_size=null"))
    elif settings.clip_ratio != 1.0:
        found.append(CLIPPED)
    return found


def _int4_weight_obstacles(facts: Facts) -> list[Obstacle]:
    """Beside activations of 4 bits vLLM has symmetric weights of at most 4, and rounds scales of groups to integers."""
    formats = {
        facts.recipe.weights_of(name).format
        for name in facts.linears
        if facts.recipe.activations_of(name).num_bits == INT4
    }
    found = []
    for fmt in formats:
        if isinstance(fmt, IntFormat) and (fmt.num_bits > INT4 or not fmt.symmetric):
            what = "beside activations of 4 bits vLLM has no weights but symmetric ones of at most 4"
            found.append(Obstacle(what, f"weights.num_bits={min(fmt.num_bits, INT4)} weights.symmetric=true"))
        if isinstance(fmt, IntFormat) and fmt.group_size is not None:
            what = "beside activations of 4 bits vLLM rounds the scales of groups of weights"
            found.append(Obstacle(what, "weights.group_size=null"))
    return found
