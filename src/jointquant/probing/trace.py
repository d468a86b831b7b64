"""One run of a small model, and what every module of it read and returned."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from jointquant.models.configuration import blamed
from jointquant.probing.precision import InFloat64
from jointquant.runtime.attention import ATTENTION_NAME

TOKENS = 24


@dataclass(frozen=True)
class Call:
    """What a module read and what it returned: the first tensor of each."""

    read: Tensor
    returned: Tensor


@dataclass
class Trace:
    """Of one run.

    Attributes:
        calls: by full name of a module, in the order in which they ended.
        values: by full name of an attention module, the values [batch, KV heads, tokens, head_dim] it handed on.
        logits: [batch, tokens, vocabulary].
    """

    calls: dict[str, Call] = field(default_factory=dict)
    values: dict[str, Tensor] = field(default_factory=dict)
    logits: Tensor = field(default_factory=lambda: torch.empty(0))

    def within(self, prefix: str) -> dict[str, Call]:
        """The calls of the modules below a name, by the rest of theirs."""
        return {name.removeprefix(f"{prefix}."): c for name, c in self.calls.items() if name.startswith(f"{prefix}.")}


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same numbers in memory."""
    return one.data_ptr() == other.data_ptr() and one.numel() == other.numel()


def trace(model: PreTrainedModel) -> Trace:
    """Run a small model over some tokens. Raises InputError when it does not run."""
    found = Trace()
    model.set_attn_implementation(ATTENTION_NAME)
    if any(parameter.ndim == 3 for parameter in model.parameters()):
        model.set_experts_implementation("eager")  # grouped products know no float64
    ids = torch.randint(1, model.config.vocab_size, (2, TOKENS), generator=torch.Generator().manual_seed(1))
    with ExitStack() as stack:
        for name, module in model.named_modules():
            hook = partial(_note, found, name)
            stack.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
            module.cache_path = partial(_values, found, name)
            stack.callback(delattr, module, "cache_path")
        with blamed(f"a small {model.config.model_type} model does not run"), InFloat64(), torch.no_grad():
            found.logits = model(input_ids=ids, use_cache=False).logits
    return found


def _note(found: Trace, name: str, _: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
    read = next((each for each in (*args, *kwargs.values()) if isinstance(each, Tensor)), None)
    returned = output[0] if isinstance(output, tuple) else output
    if isinstance(read, Tensor) and isinstance(returned, Tensor):
        found.calls[name] = Call(read, returned)


def _values(
    found: Trace, name: str, query: Tensor, key: Tensor, value: Tensor, _: object
) -> tuple[Tensor, Tensor, Tensor]:
    found.values[name] = value
    return query, key, value
