"""Layers that draft: what a checkpoint holds beside the model, to predict one token more (multi-token prediction).

A layer of DeepSeek V3 (arXiv 2412.19437, section 2.2) reads the output of the final norm and the embedding of the next
token, and hands what it makes of them to the model's head. transformers has no place for it in the model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from jointquant.models.architecture import Architecture
from jointquant.models.source import TensorSource

BESIDE = "mtp"
"""The module of such layers in checkpoints that do not number them behind the others."""


@dataclass(frozen=True)
class Drafts:
    """The layers that draft in one checkpoint.

    Attributes:
        modules: the names of their tensors in the checkpoint, by layer, or by the one module that holds all of them.
        source: where the tensors are; None: there are none.
    """

    modules: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    source: TensorSource | None = None

    @classmethod
    def of(cls, source: TensorSource, skeleton: nn.Module, architecture: Architecture) -> Drafts:
        """Those of a checkpoint.

        Args:
            source: its tensors, experts as they are stored.
            skeleton: the model, which has none of them.
            architecture: its family.
        """
        found: dict[str, list[str]] = {}
        for name in sorted(source.shapes()):
            if is_draft(name, skeleton, architecture.layers):
                found.setdefault(module_of(name, architecture.layers), []).append(name)
        return cls({module: tuple(names) for module, names in found.items()}, source if found else None)

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self.modules)

    def load(self, module: str) -> dict[str, Tensor]:
        """Copies of the tensors of one of ``modules``, by name, in the dtypes that they are stored in.

        Raises:
            InputError: one is not finite, or of no floating-point dtype.
        """
        assert self.source is not None
        for name in self.modules[module]:
            self.source.dtype(name)  # raises
        return {name: self.source.load(name).clone() for name in self.modules[module]}


def is_draft(name: str, skeleton: nn.Module, layers: str) -> bool:
    """Whether a tensor is of a layer that drafts: transformers ignores it, and it is in no layer of the model.

    Args:
        name: of the tensor.
        skeleton: the model.
        layers: the full name of its layers.
    """
    module = module_of(name, layers)
    number = module.removeprefix(f"{layers}.")
    behind = number.isdigit() and int(number) >= len(skeleton.get_submodule(layers))  # type: ignore[arg-type]
    return (behind or module == BESIDE) and is_ignored(name, skeleton)


def is_ignored(name: str, skeleton: nn.Module) -> bool:
    """Whether transformers' model says that checkpoints have this tensor beside it."""
    patterns: list[str] = getattr(skeleton, "_keys_to_ignore_on_load_unexpected", None) or []
    return any(re.search(pattern, name) for pattern in patterns)


def module_of(name: str, layers: str) -> str:
    """The layer, or the part of the whole, that a tensor belongs to; ``layers`` is the full name of the layers."""
    layer = re.match(rf"{re.escape(layers)}\.\d+(?=\.)", name)
    return layer[0] if layer else name.partition(".")[0]
