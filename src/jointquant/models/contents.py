"""What a checkpoint holds, read as transformers reads it: under which names, and whether it is the whole model."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key

from jointquant.distributed.launch import leads
from jointquant.errors import require
from jointquant.models.architecture import Architecture
from jointquant.models.drafts import is_draft, is_ignored, module_of
from jointquant.models.source import TensorSource

LOG = logging.getLogger("jointquant")

LEGACY_BUFFERS = ("rotary_emb.inv_freq", "masked_bias")
"""Ends of the names of buffers that old checkpoints carry and that transformers computes itself."""

CACHE_SCALES = (".k_scale", ".v_scale", ".q_scale", ".kv_scale", ".prob_scale", ".output_scale")
"""Ends of the names of scales for 8-bit caches, which other runtimes read beside a model of floating point."""

SHOWN = 3
DRAFTING = "; they draft, and an artifact made without R1 (rotations.r1.kind=none) keeps them"


class AsNamed:
    """A ``TensorSource`` under the names that a model's tensors have, with or without the prefix of its base model.

    A base model (``LlamaModel``) is saved without the prefix ``model.`` that it has inside the whole; transformers
    finds its tensors all the same. Where input and output embeddings are tied and the checkpoint holds the output's
    alone, they are the input's too.

    Args:
        source: the tensors as they are stored.
        skeleton: the model.
        architecture: its family.

    Raises:
        InputError: a tensor that is there twice.
    """

    def __init__(self, source: TensorSource, skeleton: PreTrainedModel, architecture: Architecture) -> None:
        self.source = source
        self._stored: dict[str, str] = {}
        named = _names_in(skeleton, architecture)
        for stored in source.shapes():
            name = named(stored)
            before = self._stored.get(name)
            require(before is None, f"tensor {name} is there twice: as {before} and as {stored}")
            self._stored[name] = stored
        head, embedding = (f"{name}.weight" for name in (architecture.head, architecture.embeddings[0]))
        if skeleton.config.tie_word_embeddings and head in self._stored:
            self._stored.setdefault(embedding, self._stored[head])

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor."""
        stored = self.source.shapes()
        return {name: stored[kept] for name, kept in self._stored.items()}

    def dtype(self, name: str) -> torch.dtype:
        """The dtype of a tensor."""
        return self.source.dtype(self._stored[name])

    def load(self, name: str) -> Tensor:
        """A tensor."""
        return self.source.load(self._stored[name])


def _names_in(skeleton: PreTrainedModel, architecture: Architecture) -> Callable[[str], str]:
    """What a model calls a stored tensor. Those around a text model were renamed often: transformers knows how."""
    if architecture.wrapper is None:
        prefix = architecture.layers.partition(".")[0]
        whole = {name for name, _ in skeleton.named_children()}
        inside = {name for name, _ in skeleton.get_submodule(prefix).named_children()}
        return lambda stored: _named(stored, prefix, whole, inside)
    renamings = [each for each in get_model_conversion_mapping(skeleton) if isinstance(each, WeightRenaming)]
    tensors = skeleton.state_dict()
    return lambda stored: rename_source_key(stored, renamings, [], skeleton.base_model_prefix, tensors)[0]


def _named(stored: str, prefix: str, whole: set[str], inside: set[str]) -> str:
    """The name of a stored tensor in a model that has the modules ``whole``, and ``inside`` its base model."""
    first, _, rest = stored.partition(".")
    if first == prefix and rest.partition(".")[0] in whole - inside:
        return rest
    return f"{prefix}.{stored}" if first in inside - whole else stored


def own_head(source: TensorSource, architecture: Architecture, config: PretrainedConfig) -> bool:
    """Whether the output head is a matrix of its own: not tied, or stored beside other embeddings whatever is said.

    transformers believes the values more than ``tie_word_embeddings``.
    """
    head, embedding = (f"{name}.weight" for name in (architecture.head, architecture.embeddings[0]))
    shapes = source.shapes()
    if not config.tie_word_embeddings:
        return True
    if head not in shapes or shapes[head] != shapes.get(embedding):
        return head in shapes and embedding in shapes
    one, other = source.load(head), source.load(embedding)
    same_place = one.data_ptr() == other.data_ptr() and one.stride() == other.stride()
    return not (same_place or torch.equal(one, other.to(one.dtype)))


def check_contents(source: TensorSource, skeleton: nn.Module, architecture: Architecture) -> tuple[str, ...]:
    """Refuse tensors that are missing, misshapen or of no use; those that transformers would leave aside too are named.

    Args:
        source: the tensors under the model's names.
        skeleton: the model, its experts apart; a head that is tied may be missing from ``source``.
        architecture: its family.

    Returns:
        The names of what is left aside.

    Raises:
        InputError: names the tensor.
    """
    have, family = source.shapes(), architecture.model_type
    want = {name: tuple(tensor.shape) for name, tensor in skeleton.state_dict().items()}
    tied = getattr(skeleton.config, "tie_word_embeddings", False)
    for name, shape in want.items():
        if name == f"{architecture.head}.weight" and tied and name not in have:
            continue
        require(name in have, f"missing tensor {name}: the configuration expects it, shape {list(shape)}")
        require(
            have[name] == shape,
            f"tensor {name} has shape {list(have[name])}: the configuration expects {list(shape)}",
        )
        source.dtype(name)  # raises where it is none of floating point
    extra = sorted(name for name in have if name not in want and not name.endswith(LEGACY_BUFFERS))
    layers = len(skeleton.get_submodule(architecture.layers))  # type: ignore[arg-type]
    drafts = {name for name in extra if is_draft(name, skeleton, architecture.layers)}
    for name in extra:
        why = None if name in drafts else _needed(name, skeleton, architecture.layers, layers)
        require(why is None, f"unexpected tensor {name}: a {family} model of this configuration has none, and {why}")
    if leads():
        _say(tuple(name for name in extra if name not in drafts), family)
        _say(tuple(sorted(drafts)), family, DRAFTING)
    return tuple(extra)


def modules_of(names: Iterable[str], architecture: Architecture) -> list[str]:
    """Tensors in short: what they belong to, a layer or a part of the model, each with the number of its tensors."""
    counts = Counter(module_of(name, architecture.layers) for name in names)
    return [f"{module} ({count} {'tensor' if count == 1 else 'tensors'})" for module, count in sorted(counts.items())]


def _needed(name: str, skeleton: nn.Module, layers: str, count: int) -> str | None:
    """Why a tensor that the model has no place for may not be left aside; None: it may."""
    inside = re.match(rf"{re.escape(layers)}\.(\d+)\.", name)
    if inside is None and is_ignored(name, skeleton):
        return None
    if inside is not None and int(inside[1]) >= count:
        return f"there are only {count} layers: expected num_hidden_layers as the checkpoint has them"
    if name.endswith(CACHE_SCALES):
        return None
    owner = dict(skeleton.named_modules()).get(name.rpartition(".")[0])
    if inside is not None or (owner is not None and any(True for _ in owner.parameters(recurse=False))):
        return "without it another model may remain: expected a configuration that has it, or a checkpoint without it"
    return None


@cache
def _say(names: tuple[str, ...], family: str, further: str = "") -> None:
    """One line, however often the model is opened; none where there are no names."""
    if not names:
        return
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    shown = ", ".join(names[:SHOWN]) + more
    LOG.warning("tensors left aside, as by transformers, since no %s model has them: %s%s", family, shown, further)
