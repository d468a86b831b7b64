"""The tensors of a GGUF file, as a plan: their names there, and how each is made of an artifact's."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy
from gguf import GGMLQuantizationType, get_tensor_name_map
from numpy.typing import NDArray
from torch import Tensor

from jointquant.errors import require
from jointquant.export.artifact import Artifact
from jointquant.export.gguf_blocks import GROUP, block_size, blocks_of, half_or_full, kind_of
from jointquant.export.gguf_families import FAMILIES, Family
from jointquant.export.gguf_rope import interleave, rope_tensors
from jointquant.quantization.integer import IntFormat
from jointquant.quantization.weights import QuantizedWeight

EXPERT = re.compile(r"(.+\.experts)\.\d+\.(\w+)")
"""A linear of an expert; llama.cpp has those of a layer in one tensor."""

STORED = ("weight", "bias", "weight_packed")
"""Own names of tensors that are one in the file; scales and zero points are in the blocks."""


@dataclass(frozen=True)
class Planned:
    """A tensor of the file before it is made: its name and size there, and how to make it."""

    name: str
    shape: tuple[int, ...]
    dtype: type[numpy.generic]
    kind: GGMLQuantizationType | None
    make: Callable[[], NDArray[Any]]

    @property
    def nbytes(self) -> int:
        """Its size in the file."""
        return int(numpy.prod(self.shape)) * numpy.dtype(self.dtype).itemsize


def plan(artifact: Artifact) -> list[Planned]:
    """All tensors of the file, in the artifact's order.

    Raises:
        InputError: a module that GGUF has no name for, or experts that do not fit into one tensor.
    """
    family = FAMILIES[artifact.architecture.model_type]
    check_ends(artifact, family)
    names = get_tensor_name_map(family.arch, artifact.num_layers)
    plans = []
    for modules in artifact.shards():
        for shared, members in stacked(modules).items():
            if family.tied and shared == artifact.architecture.head:
                continue
            stored = names.get_name(shared)
            require(stored is not None, f"no GGUF export of {shared}: llama.cpp has no such tensor")
            for own in artifact.tensors_of(members[0]):
                if own in STORED:
                    plans.append(_planned(artifact, members, own, str(stored)))
    for name, factors in rope_tensors(artifact.config).items():
        plans.append(Planned(name, tuple(factors.shape), numpy.float32, None, factors.numpy))
    return plans


def check_ends(artifact: Artifact, family: Family) -> None:
    """Raises InputError for a head of its own where llama.cpp has the embedding for it."""
    tied = artifact.quantization.tied_ends() is not None
    require(
        tied or not family.tied,
        f"no GGUF export of a head apart from the embedding: llama.cpp's {artifact.architecture.model_type} has one "
        "matrix for both, expected a model whose head is tied, quantized by this version",
    )


def stacked(modules: list[str]) -> dict[str, list[str]]:
    """Modules by what the file makes one tensor of: the same linear of all experts of a layer, or one module."""
    found: dict[str, list[str]] = {}
    for module in modules:
        expert = EXPERT.fullmatch(module)
        found.setdefault(module if expert is None else f"{expert[1]}.{expert[2]}", []).append(module)
    return {shared: sorted(members, key=_number) for shared, members in found.items()}


def _number(module: str) -> int:
    """Which expert's."""
    found = re.search(r"\.experts\.(\d+)\.", module)
    return 0 if found is None else int(found[1])


def _planned(artifact: Artifact, members: list[str], own: str, stored: str) -> Planned:
    """One tensor, of one module or of all experts of a layer."""
    name = f"{stored}.{'bias' if own == 'bias' else 'weight'}"
    parts = [
        _quantized(artifact, m, name) if own == "weight_packed" else _plain(artifact, m, own, name) for m in members
    ]
    first = parts[0]
    if len(members) == 1 and EXPERT.fullmatch(members[0]) is None:
        return first
    same = all((part.shape, part.kind) == (first.shape, first.kind) for part in parts)
    require(same, f"no GGUF export of {name}: the experts of a layer are on several grids, expected `overrides=[]`")
    make = partial(_stack, parts)
    return Planned(name, (len(parts), *first.shape), first.dtype, first.kind, make)


def _stack(parts: list[Planned]) -> NDArray[Any]:
    return numpy.stack([part.make() for part in parts])


def _quantized(artifact: Artifact, module: str, name: str) -> Planned:
    """A weight in blocks."""
    fmt = artifact.format_of(module)
    assert isinstance(fmt, IntFormat)
    rows, columns = artifact.shape(module)
    shape = (rows, columns // GROUP * block_size(fmt))
    return Planned(
        name, shape, numpy.uint8, kind_of(fmt), lambda: blocks_of(_permuted_weight(artifact, module), module)
    )


def _plain(artifact: Artifact, module: str, own: str, name: str) -> Planned:
    """A tensor that is not quantized: vectors, and what stays in high precision, in float32, matrices in float16."""
    shape = artifact.source.shapes()[f"{module}.{own}"]
    if own == "weight" and len(shape) == 1:
        return Planned(name, shape, numpy.float32, None, lambda: _gain(artifact, module).float().numpy())
    if module in artifact.kept and own == "weight":
        shape = shape[1:] if shape[0] == 1 else shape  # a gate is a vector there
        return Planned(
            name, shape, numpy.float32, None, lambda: artifact.load(f"{module}.{own}").float().view(shape).numpy()
        )
    dtype = numpy.float32 if len(shape) == 1 else numpy.float16
    full_name = f"{module}.{own}"
    return Planned(
        name, shape, dtype, None, lambda: half_or_full(_permuted(artifact, module, artifact.load(full_name)), module)
    )


def _gain(artifact: Artifact, module: str) -> Tensor:
    """What a norm multiplies by, in float64."""
    return artifact.architecture.norm.gain_of(artifact.load(f"{module}.weight"))


def _permuted_weight(artifact: Artifact, module: str) -> QuantizedWeight:
    weight = artifact.quantized_weight(module)
    codes, scale, zero_point = (
        _permuted(artifact, module, part) for part in (weight.codes, weight.scale, weight.zero_point)
    )
    return QuantizedWeight(codes, scale, zero_point, weight.fmt)


def _permuted(artifact: Artifact, module: str, rows: Tensor) -> Tensor:
    """The rows of q and k in the order of the family's rotary embedding in llama.cpp; others as they are."""
    if not FAMILIES[artifact.architecture.model_type].interleaved:
        return rows
    config = artifact.config
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(module.rpartition(".")[2])
    return rows if heads is None else interleave(rows, heads)
