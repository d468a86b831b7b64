"""What became of every parameter of a model: quantized, merged into others, or kept in high precision, and why.

Nothing is skipped silently: a parameter that no rule here knows is listed all the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor, nn

from jointquant.models.architecture import Architecture
from jointquant.recipe.recipe import Recipe
from jointquant.rotations.undone import Undone
from jointquant.runtime.embedding import PackedEmbedding
from jointquant.runtime.linear import PackedLinear

NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")

BIAS = "bias: added behind the product"
ROUTER = "router: chooses the experts of a token, from inputs that are not quantized"
SHARED_GATE = "gate of the shared expert: one output"
LEFT = "linear that the recipe leaves in floating point"
EMBEDDING = "embedding that the recipe leaves in floating point"
NORM = "norm that nothing can be merged with"
GAIN = "norm that keeps its gain: no R1 turns what it reads"
TOWER = "of what reads images, passed through"
TOWER_WRITER = "of what reads images, passed through but for R1, where it writes to the residual stream"
DRAFT = "of layers that draft, passed through"
DRAFT_BESIDE = f"{DRAFT}; runtimes lend them the model's embedding and head, and a quantized one is among them"
RECURRENCE = "of a recurrence: its convolution, gates and decay"
BASIS = "change of the residual stream's basis between layers"
SCORES = "of the attention itself: beside the scores of a query"
OTHER = "no linear of the decoder"


@dataclass(frozen=True)
class Kept:
    """Parameters that stay in high precision.

    Attributes:
        name: theirs, with * for numbers of layers and experts.
        parameters: how many numbers they hold together.
        why: the reason.
    """

    name: str
    parameters: int
    why: str


@dataclass(frozen=True)
class Starved:
    """An expert that too few calibration tokens reached: its statistics were taken on all tokens of its layer.

    Attributes:
        layer: which decoder layer.
        expert: which of its experts.
        tokens: how many are routed to it.
    """

    layer: int
    expert: int
    tokens: int


@dataclass(frozen=True)
class Inventory:
    """Of a whole model or a part of it.

    Attributes:
        quantized: how many weights are quantized.
        kept: what is not, and is not merged into other weights either.
        starved: experts that too few tokens reached.
        undone: by the name of a rotation that was learned for it, R3 or R4, what became of its training.
    """

    quantized: int = 0
    kept: tuple[Kept, ...] = ()
    starved: tuple[Starved, ...] = ()
    undone: Mapping[str, Undone] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "quantized": self.quantized,
            "kept": [asdict(each) for each in self.kept],
            "starved": [asdict(each) for each in self.starved],
            "undone": {name: asdict(each) for name, each in self.undone.items()},
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Inventory:
        """The inverse of ``to_dict``."""
        kept, starved = (Kept(**each) for each in data["kept"]), (Starved(**each) for each in data["starved"])
        undone = {name: Undone.from_dict(each) for name, each in data["undone"].items()}
        return cls(data["quantized"], tuple(kept), tuple(starved), undone)

    @classmethod
    def joined(cls, parts: Iterable[Inventory]) -> Inventory:
        """Several as one: numbers of the same name and reason are added."""
        quantized, starved, counts = 0, list[Starved](), dict[tuple[str, str], int]()
        undone: dict[str, Undone] = {}
        for part in parts:
            quantized += part.quantized
            starved += part.starved
            undone |= part.undone
            for each in part.kept:
                counts[each.name, each.why] = counts.get((each.name, each.why), 0) + each.parameters
        kept = tuple(Kept(name, n, why) for (name, why), n in counts.items())
        return cls(quantized, kept, tuple(starved), undone)


def inventory_of(module: nn.Module, prefix: str, architecture: Architecture, merges_gains: bool) -> Inventory:
    """What became of a module's parameters: of the embeddings, a finished layer, the final norm, the head.

    Args:
        module: as it is stored.
        prefix: its full name.
        architecture: of the layer, or of the family.
        merges_gains: whether its norms are fused: then they are 1, and hold nothing.
    """
    packed = [m for m in module.modules() if isinstance(m, (PackedLinear, PackedEmbedding))]
    quantized = sum(_weights(each) for each in packed)
    norms = {site.norm for site in architecture.normed_sites} | {architecture.final_norm}
    kept = []
    for name, parameter in module.named_parameters():
        full_name = f"{prefix}.{name}"
        owner = name.rpartition(".")[0]
        mergeable = owner in norms or full_name.rpartition(".")[0] in norms
        if not (mergeable and merges_gains):
            why = GAIN if mergeable else _reason(module.get_submodule(owner), owner, full_name, architecture)
            kept.append(Inventory(kept=(Kept(NUMBER.sub("*", full_name), parameter.numel(), why),)))
    return Inventory.joined([Inventory(quantized), *kept])


def kept_draft(module: str, tensors: Mapping[str, Tensor], recipe: Recipe) -> Inventory:
    """Of a layer that drafts.

    Args:
        module: its full name.
        tensors: as they are stored.
        recipe: what becomes of the ends that runtimes lend it.
    """
    beside = recipe.head.enabled or recipe.embeddings.enabled
    numbers = sum(tensor.numel() for tensor in tensors.values())
    return Inventory(kept=(Kept(f"{module}.*", numbers, DRAFT_BESIDE if beside else DRAFT),))


def _inside(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def _weights(packed: PackedLinear | PackedEmbedding) -> int:
    if isinstance(packed, PackedLinear):
        return packed.in_features * packed.out_features
    return packed.num_embeddings * packed.embedding_dim


def _reason(owner: nn.Module, name: str, full_name: str, architecture: Architecture) -> str:
    """Why a parameter is kept; ``name`` is its module's in the layer."""
    if full_name.endswith(".bias"):
        return BIAS
    if architecture.value is None and name not in architecture.linears and _inside(name, architecture.attention):
        return RECURRENCE
    if any(name in site.kept for site in architecture.residual_sites):
        return SHARED_GATE if isinstance(owner, nn.Linear) else ROUTER
    if architecture.absolute_scores is not None and name == architecture.attention:
        return SCORES
    if name == "basis_change":
        return BASIS
    if "Norm" in type(owner).__name__:
        return NORM
    if isinstance(owner, nn.Embedding):
        return EMBEDDING
    left = name in architecture.linears or full_name.rpartition(".")[0] == architecture.head
    return LEFT if left else OTHER
