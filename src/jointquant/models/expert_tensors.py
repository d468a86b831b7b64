"""The tensors of a mixture under the names of its experts' linears, whatever form they are stored in.

Checkpoints hold one tensor per expert and projection, under names of their family's; transformers' models in memory,
and folders saved in that form, hold ``gate_up_proj`` [experts, 2 · intermediate, hidden] and ``down_proj``
[experts, hidden, intermediate], or what ``FusedExperts`` says of a family.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import torch
from torch import Tensor

from jointquant.errors import require
from jointquant.models.architecture import PROJECTIONS, Architecture, FusedExperts
from jointquant.models.source import TensorSource

MAX_EXPERTS = 1 << 12
FUSED, BIAS = ("gate_up_proj", "down_proj"), "_bias"


class StoredNames:
    """What the checkpoints of a family call the tensors of its layers, and back."""

    def __init__(self, architecture: Architecture) -> None:
        mixture = architecture.mixture
        assert mixture is not None
        self.layer = re.compile(rf"({re.escape(architecture.layers)}\.\d+)\.(.+)")
        self.block, self.stored_block = mixture.block, mixture.stored_block
        self.expert = mixture.experts.removeprefix(f"{mixture.block}.")
        self.projections = dict(zip(PROJECTIONS, mixture.stored_projections, strict=True))

    def of(self, name: str) -> str:
        """The name of a tensor (or of a module) in a checkpoint."""
        return self._renamed(name, self.block, self.stored_block, self.projections)

    def ours(self, stored: str) -> str:
        """The name of a checkpoint's tensor (or module) in a model whose experts are apart."""
        back = {stored: name for name, stored in self.projections.items()}
        return self._renamed(stored, self.stored_block, self.block, back)

    def _renamed(self, name: str, block: str, new_block: str, projections: dict[str, str]) -> str:
        found = self.layer.fullmatch(name)
        if found is None or not found[2].startswith(f"{block}."):
            return name
        parts = found[2].removeprefix(f"{block}.").split(".")
        if parts[0] == self.expert and len(parts) > 2:
            parts[2] = projections.get(parts[2], parts[2])
        return ".".join((found[1], new_block, *parts))


def stored_name(architecture: Architecture, name: str) -> str:
    """What a checkpoint of the family calls a tensor or module of ours."""
    return name if architecture.mixture is None else StoredNames(architecture).of(name)


def our_name(architecture: Architecture, stored: str) -> str:
    """What we call a tensor or module of a checkpoint of the family."""
    return stored if architecture.mixture is None else StoredNames(architecture).ours(stored)


@dataclass(frozen=True)
class Part:
    """Where a tensor is: the whole of a stored one, or some outputs of one expert's part of it.

    Attributes:
        stored: the stored tensor.
        shape: of the tensor itself.
        expert: whose part of it; None: it is the whole.
        outputs: which of that part's outputs.
        transposed: whether outputs are its columns.
    """

    stored: str
    shape: tuple[int, ...]
    expert: int | None = None
    outputs: slice = field(default_factory=lambda: slice(None))
    transposed: bool = False

    def of(self, fused: Tensor) -> Tensor:
        """The tensor itself, out of the stored one."""
        own = fused[self.expert]
        return own[:, self.outputs].t().contiguous() if self.transposed else own[self.outputs]


class ExpertTensors:
    """A ``TensorSource`` of the linears of experts.

    Args:
        source: the tensors as they are stored.
        architecture: of a family with experts.

    Raises:
        InputError: one linear is there twice.
    """

    def __init__(self, source: TensorSource, architecture: Architecture) -> None:
        assert architecture.mixture is not None
        self.source = source
        self._parts: dict[str, Part] = {}
        self._fused: dict[str, Tensor] = {}
        names, form = StoredNames(architecture), architecture.mixture.fused
        self._by_turns = 4 if form.biases else 2  # fused tensors of a layer, which are read by turns
        for stored, shape in source.shapes().items():
            for name, part in parts_of(names.ours(stored), stored, shape, form):
                require(
                    name not in self._parts,
                    f"tensor {name} is there twice: as {stored} and as {self._parts.get(name, part).stored}",
                )
                self._parts[name] = part

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor."""
        return {name: part.shape for name, part in self._parts.items()}

    def dtype(self, name: str) -> torch.dtype:
        """The dtype of a tensor."""
        return self.source.dtype(self._parts[name].stored)

    def load(self, name: str) -> Tensor:
        """A tensor; of a fused one a view, or a copy where that is transposed."""
        part = self._parts[name]
        if part.expert is None:
            return self.source.load(part.stored)
        fused = self._fused.get(part.stored)
        if fused is None:
            fused = self.source.load(part.stored)
            kept = dict(list(self._fused.items())[1 - self._by_turns :])
            self._fused = kept | {part.stored: fused}
        return part.of(fused)


def parts_of(name: str, stored: str, shape: tuple[int, ...], form: FusedExperts) -> list[tuple[str, Part]]:
    """The linears in a stored tensor, by their names."""
    base, _, kind = name.rpartition(".")
    bias, kind = kind.endswith(BIAS) and form.biases, kind.removesuffix(BIAS) if form.biases else kind
    fused = kind in FUSED and base.endswith(".experts") and len(shape) == (2 if bias else 3)
    if not fused or not 0 < shape[0] <= MAX_EXPERTS:
        return [(name, Part(stored, shape))]
    experts, *own = shape
    transposed = form.transposed and not bias
    outputs, *inputs = reversed(own) if transposed else own
    return [
        (
            f"{base}.{expert}.{projection}.{'bias' if bias else 'weight'}",
            Part(stored, (len(range(outputs)[rows]), *inputs), expert, rows, transposed),
        )
        for expert in range(experts)
        for projection, rows in outputs_of(kind, outputs, form).items()
    ]


def outputs_of(kind: str, outputs: int, form: FusedExperts) -> dict[str, slice]:
    """Which outputs of an expert's part of a fused tensor are which projection's."""
    if kind == "down_proj":
        return {"down_proj": slice(0, outputs)}
    if form.interleaved:
        return {"gate_proj": slice(0, outputs, 2), "up_proj": slice(1, outputs, 2)}
    return {"gate_proj": slice(0, outputs // 2), "up_proj": slice(outputs // 2, outputs)}


def as_stored(tensors: dict[str, Tensor], architecture: Architecture) -> dict[str, Tensor]:
    """Tensors of ours under the names, and in the form, that checkpoints of the family have them in.

    Args:
        tensors: by our names; experts are those of whole layers.
        architecture: the family.

    Raises:
        InputError: only some experts of a layer, in a family whose checkpoints hold them all in one tensor.
    """
    mixture = architecture.mixture
    if mixture is None or not mixture.fused.stored:
        return {stored_name(architecture, name): tensor for name, tensor in tensors.items()}
    expert = re.compile(rf"(.*\.{re.escape(mixture.experts)})\.(\d+)\.(\w+)\.(weight|bias)")
    left, found = dict[str, Tensor](), dict[str, dict[int, dict[str, Tensor]]]()
    for name, tensor in tensors.items():
        parts = expert.fullmatch(name)
        if parts is None:
            left[name] = tensor
            continue
        base, number, projection, kind = parts.groups()
        fused = f"{base}.{FUSED[projection == 'down_proj']}{BIAS if kind == 'bias' else ''}"
        found.setdefault(fused, {}).setdefault(int(number), {})[projection] = tensor
    return left | {name: _joined(name, experts, mixture.fused) for name, experts in found.items()}


def _joined(name: str, experts: dict[int, dict[str, Tensor]], form: FusedExperts) -> Tensor:
    """One tensor of all experts' parts."""
    whole = sorted(experts) == list(range(len(experts))) and len({len(each) for each in experts.values()}) == 1
    require(whole, f"{name}: its experts lie in several files, expected the artifact as it was written")
    joined = []
    for number in range(len(experts)):
        parts = [experts[number][projection] for projection in PROJECTIONS if projection in experts[number]]
        own = torch.stack(parts, 1).flatten(0, 1) if form.interleaved and len(parts) > 1 else torch.cat(parts)
        joined.append(own.t() if form.transposed and own.ndim > 1 else own)
    return torch.stack(joined)
