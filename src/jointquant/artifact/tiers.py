"""Where the result of a recipe loads, and which change of the recipe would let it load in more places.

Tier 1 has nothing online: every runtime loads its exports. Tier 2 adds what vLLM alone runs: R4, as a transform of
compressed-tensors; activations of 4 bits on vLLM's symmetric grid; vLLM's own cache of 4 bits. Tier 3 is everything
else: R3, another quantized cache, a basis change after each layer, activations of few bits on other grids; it runs as
the native artifact, with this package.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from jointquant.artifact.obstacles.compressed import compressed_obstacles, few_bits_in_vllm
from jointquant.artifact.obstacles.dense import dense_obstacles
from jointquant.artifact.obstacles.facts import Facts, Obstacle
from jointquant.artifact.obstacles.gguf import gguf_obstacles
from jointquant.models.support import NOT_IN_VLLM
from jointquant.recipe.targets import INT4_IN_VLLM, VLLM_CACHE

OBSTACLES: dict[str, Callable[[Facts], list[Obstacle]]] = {
    "dense": dense_obstacles,
    "compressed-tensors": compressed_obstacles,
    "gguf": gguf_obstacles,
}
"""By format: what keeps a model out of it; none when it can be exported without loss."""

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
    held = {name: not OBSTACLES[name](facts) for name in OBSTACLES}
    if not held["compressed-tensors"] and not held["dense"] and not held["gguf"]:
        return Reach(3, (NATIVE,))
    if few_bits_in_vllm(facts):
        return Reach(2, (WITH_INT4_CACHE if facts.recipe.kv_cache.is_vllms else WITH_INT4, NATIVE))
    if facts.r4:
        return Reach(2, (WITH_R4, NATIVE))
    runtimes = WITHOUT_VLLM if facts.model_type in NOT_IN_VLLM else RUNTIMES
    return Reach(1, (*(runtimes[name] for name in OBSTACLES if held[name]), NATIVE))


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
