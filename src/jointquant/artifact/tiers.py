"""Where the result of a recipe loads, and which change of the recipe would let it load in more places.

Tier 1 has nothing online: every runtime loads its exports. Tier 2 adds what vLLM alone runs: R4, as a transform of
compressed-tensors; activations of 4 bits on vLLM's symmetric grid; vLLM's own cache of 4 bits. Tier 3 is everything
else: R3, another quantized cache, a basis change after each layer, activations of few bits on other grids; it runs as
the native artifact, with this package.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

import torch

from jointquant.models.architecture import Architecture
from jointquant.models.support import GGUF_FAMILIES, GGUF_TIED, NOT_IN_VLLM, lost_norms, lost_packed
from jointquant.quantization.codebook import CodebookFormat
from jointquant.quantization.integer import IntFormat, SymmetricRange
from jointquant.recipe.recipe import Recipe
from jointquant.recipe.rotations import LearnedResidualRotation, TrainedInnerRotation
from jointquant.recipe.settings import ActivationSettings, WeightSettings
from jointquant.recipe.targets import INT4_IN_VLLM, VLLM_CACHE
from jointquant.rotations.hadamard import HadamardTransform

if TYPE_CHECKING:  # it takes seconds to import, and an export is refused without it
    from jointquant.runtime.assembly import Assembly

GGUF_GROUP = 32
"""Weights (and activations) that share a scale in llama.cpp's Q4_0, Q4_1 and Q8_0."""

INT4 = 4
"""Bits of the activations that vLLM multiplies as such."""

FORMATS = ("dense", "compressed-tensors", "gguf")

RUNTIMES = {
    "dense": "any runtime of transformers checkpoints (export --format dense --dequantized)",
    "compressed-tensors": "transformers and vLLM (export --format compressed-tensors)",
    "gguf": "llama.cpp (export --format gguf)",
}
WITHOUT_VLLM = {
    "dense": "transformers (export --format dense --dequantized)",
    "compressed-tensors": "transformers (export --format compressed-tensors)",
    "gguf": RUNTIMES["gguf"],
}
"""The same for families whose exports are not for vLLM."""
NATIVE = "transformers after `import jointquant`"
WITH_R4 = "vLLM (export --format compressed-tensors, R4 online)"
WITH_INT4 = f"{INT4_IN_VLLM} (export --format compressed-tensors, inputs of 4 bits)"
WITH_INT4_CACHE = f"{INT4_IN_VLLM} (export --format compressed-tensors; vllm serve … {VLLM_CACHE})"


@dataclass(frozen=True)
class Obstacle:
    """Something that a format cannot hold.

    Attributes:
        what: the setting, and why it does not fit.
        change: the change of the recipe that would help, such as ``weights.num_bits=4``; several have spaces between;
            empty where none does.
    """

    what: str
    change: str = ""

    def __str__(self) -> str:
        return f"{self.what} ({in_settings(self.change) or 'no setting changes that'})"


def in_settings(changes: str) -> str:
    """Changes of a recipe as messages name settings."""
    return " ".join(f"`{change}`" for change in changes.split())


@dataclass(frozen=True)
class Facts:
    """What decides where a model loads.

    Attributes:
        recipe: its recipe.
        linears: the full names of the decoder's linears.
        model_type: its family.
        plain_norms: whether the artifact's norms are of the family's own class: fused LayerNorms are not.
        r4: the online transforms of the down projections' inputs, one a size; empty where there is none.
        dtype: that the model is stored in.
        experts: those of the linears that are experts'.
        lost: why packed weights of this family load nowhere else; empty where they do.
    """

    recipe: Recipe
    linears: tuple[str, ...]
    model_type: str
    plain_norms: bool
    r4: tuple[HadamardTransform, ...]
    dtype: torch.dtype
    experts: tuple[str, ...] = ()
    lost: str = ""

    def weights(self) -> list[WeightSettings]:
        """The different settings of the linears' weights."""
        return list(dict.fromkeys(self.recipe.weights_of(name) for name in self.linears))

    def activations(self) -> list[ActivationSettings]:
        """The different settings of the linears' inputs."""
        return list(dict.fromkeys(self.recipe.activations_of(name) for name in self.linears))


@dataclass(frozen=True)
class Reach:
    """Where a model loads.

    Attributes:
        tier: 1, 2 or 3.
        runtimes: who can run it, in words, each with the export it takes.
    """

    tier: int
    runtimes: tuple[str, ...]

    def to_dict(self) -> dict[str, object]:
        """As plain data."""
        return {"tier": self.tier, "runtimes": list(self.runtimes)}


def reach(facts: Facts) -> Reach:
    """The tier, and the runtimes."""
    held = {name: not OBSTACLES[name](facts) for name in FORMATS}
    if not held["compressed-tensors"] and not held["dense"] and not held["gguf"]:
        return Reach(3, (NATIVE,))
    if few_bits_in_vllm(facts):
        return Reach(2, (WITH_INT4_CACHE if facts.recipe.kv_cache.is_vllms else WITH_INT4, NATIVE))
    if facts.r4:
        return Reach(2, (WITH_R4, NATIVE))
    runtimes = WITHOUT_VLLM if facts.model_type in NOT_IN_VLLM else RUNTIMES
    return Reach(1, (*(runtimes[name] for name in FORMATS if held[name]), NATIVE))


def online(facts: Facts) -> list[Obstacle]:
    """What runs with the model besides R4, which only the native artifact holds."""
    rotations, cache, found = facts.recipe.rotations, facts.recipe.kv_cache, []
    if isinstance(rotations.r1, LearnedResidualRotation) and rotations.r1.per_layer:
        what = f"rotations.r1.strategy {rotations.r1.strategy} changes the basis after each layer"
        found.append(Obstacle(what, "rotations.r1.strategy=pooled"))
    if isinstance(rotations.r4, TrainedInnerRotation):
        found.append(Obstacle("R4 is learned", "rotations.r4.kind=hadamard"))
    if rotations.r3.kind != "none":
        found.append(Obstacle("R3 is online", "rotations.r3.kind=none"))
    if cache.balancing != "none":
        found.append(Obstacle("queries and keys are balanced online", "kv_cache.balancing=none"))
    if cache.centring != "none":
        found.append(
            Obstacle(f"kv_cache.centring {cache.centring} needs biases or runs online", "kv_cache.centring=none")
        )
    if any(settings.centring != "none" for settings in facts.activations()):
        found.append(Obstacle("inputs are centred online", "activations.centring=none"))
    if not facts.plain_norms:
        found.append(Obstacle(lost_norms(facts.model_type), "rotations.r1.kind=none"))
    return found


def few_bits_in_vllm(facts: Facts) -> bool:
    """Whether vLLM has to quantize inputs or the cache to 4 bits, by what no other runtime has."""
    return facts.recipe.kv_cache.is_vllms or any(settings.num_bits == INT4 for settings in facts.activations())


def cache_lost(facts: Facts) -> list[Obstacle]:
    """A quantized cache, which is no part of a checkpoint."""
    cache = facts.recipe.kv_cache
    if not (cache.of_keys.enabled or cache.of_values.enabled):
        return []
    own = [f" kv_cache.{part}={{}}" for part in ("keys", "values") if getattr(cache, part)]
    return [Obstacle("the KV cache is quantized", "kv_cache.num_bits=16" + "".join(own))]


def r4_online(facts: Facts) -> list[Obstacle]:
    """R4, where a format has no online transform at all."""
    return [Obstacle("R4 is online", "rotations.r4.kind=none")] if facts.r4 else []


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


def activations_off(facts: Facts) -> str:
    """The settings that leave activations alone, those of overrides included."""
    own = any("num_bits" in override.activations for override in facts.recipe.overrides)
    return "activations.num_bits=16" + (" overrides=[]" if own else "")


def activations_lost(facts: Facts) -> list[Obstacle]:
    """Quantized activations, where a format has weights alone."""
    if any(settings.enabled for settings in facts.activations()):
        return [Obstacle("activations are quantized", activations_off(facts))]
    return []


def dense_obstacles(facts: Facts) -> list[Obstacle]:
    """What a dense checkpoint with the quantized values cannot hold."""
    return [*online(facts), *cache_lost(facts), *r4_online(facts), *activations_lost(facts)]


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


CLIPPED = Obstacle("the activations' range is clipped", "activations.clip_ratio=1.0")


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


GGUF_GRIDS = ((4, True), (4, False), (8, True))
"""Width and symmetry of the grids of Q4_0, Q4_1 and Q8_0."""

GGUF_INPUTS = tuple(
    IntFormat(8, True, GGUF_GROUP, symmetric_range=symmetric_range) for symmetric_range in get_args(SymmetricRange)
)
"""What llama.cpp makes of an input: it divides max|x| by 127, so the restricted range is the nearer."""


def gguf_obstacles(facts: Facts) -> list[Obstacle]:
    """What a GGUF file of Q4_0, Q4_1, Q8_0 and F16 tensors cannot hold."""
    found = [*online(facts), *cache_lost(facts), *r4_online(facts), *_tied_in_gguf(facts)]
    if facts.model_type not in GGUF_FAMILIES:
        found.append(Obstacle(f"no GGUF export of {facts.model_type} (there is one of {', '.join(GGUF_FAMILIES)})"))
    recipe = facts.recipe
    stored = [("weights", settings) for settings in facts.weights()]
    for name, settings in [*stored, ("head", recipe.head), ("embeddings", recipe.embeddings)]:
        if settings.format is not None and not gguf_holds(settings.format):
            what = f"{name} are not integers of 4 bits, or symmetric ones of 8, in groups of {GGUF_GROUP}"
            bits = settings.num_bits if settings.num_bits in (4, 8) else 8
            needed = {"type": "int", "num_bits": bits, "group_size": GGUF_GROUP}
            needed |= {"symmetric": "true"} if bits == 8 else {}
            needed |= {"group_tail": "refuse"} if settings.group_tail == "pad" else {}
            found.append(Obstacle(what, " ".join(f"{name}.{key}={value}" for key, value in needed.items())))
        elif settings.format is not None and settings.scales(facts.dtype) == torch.float32:
            found.append(
                Obstacle(f"the scales of {name} have float32, and GGUF's float16", f"{name}.scale_dtype=float16")
            )
    for activations in facts.activations():
        if activations.enabled and activations.format not in GGUF_INPUTS:
            what = f"llama.cpp quantizes activations itself, to 8 bits in groups of {GGUF_GROUP}"
            found.append(Obstacle(what, activations_off(facts)))
        elif activations.enabled and activations.clip_ratio != 1.0:
            found.append(CLIPPED)
    return found


def _tied_in_gguf(facts: Facts) -> list[Obstacle]:
    """A head or an embedding of few bits, where llama.cpp has one matrix for both."""
    ends = {"head": facts.recipe.head.enabled, "embeddings": facts.recipe.embeddings.enabled}
    if facts.model_type not in GGUF_TIED or not any(ends.values()):
        return []
    what = f"llama.cpp's {facts.model_type} has one matrix for head and embedding, which stays in 16 bits"
    return [Obstacle(what, " ".join(f"{name}.num_bits=16" for name, enabled in ends.items() if enabled))]


def gguf_holds(fmt: object) -> bool:
    """Whether a grid is Q4_0's, Q4_1's or Q8_0's."""
    groups = isinstance(fmt, IntFormat) and (fmt.group_size, fmt.tail) == (GGUF_GROUP, "refuse")
    return groups and isinstance(fmt, IntFormat) and (fmt.num_bits, fmt.symmetric) in GGUF_GRIDS


OBSTACLES = {"dense": dense_obstacles, "compressed-tensors": compressed_obstacles, "gguf": gguf_obstacles}
"""By format: what keeps a model out of it; none when it can be exported without loss."""


def words(obstacles: Iterable[Obstacle]) -> str:
    """All obstacles on one line."""
    return "; ".join(dict.fromkeys(str(obstacle) for obstacle in obstacles))


def exports_among(runtimes: Iterable[str]) -> tuple[str, ...]:
    """The formats that ``Reach.runtimes`` names."""
    named = {said: name for table in (WITHOUT_VLLM, RUNTIMES) for name, said in table.items()}
    named |= dict.fromkeys((WITH_R4, WITH_INT4, WITH_INT4_CACHE), "compressed-tensors")
    return tuple(dict.fromkeys(named[said] for said in runtimes if said in named))


def in_vllm(runtimes: Iterable[str]) -> bool:
    """Whether vLLM loads what ``Reach.runtimes`` names as compressed-tensors."""
    return bool({RUNTIMES["compressed-tensors"], WITH_R4, WITH_INT4, WITH_INT4_CACHE} & set(runtimes))


def facts_of(assembly: Assembly, dtype: torch.dtype) -> Facts:
    """What decides where a model that is built so, and stored in ``dtype``, loads."""
    family, r4, names = assembly.architecture, tuple(assembly.online.r4.values()), assembly.names
    routed = () if family.mixture is None else tuple(n for n in names if f".{family.mixture.experts}." in n)
    norms, lost = plain_norms(family, assembly.recipe), lost_packed(family)
    return Facts(assembly.recipe, names, family.model_type, norms, r4, dtype, routed, lost)


def plain_norms(family: Architecture, recipe: Recipe) -> bool:
    """Whether the norms of a family's artifact are of its own class still."""
    return not (family.norm.subtracts_mean and recipe.merges_gains)
