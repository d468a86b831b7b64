"""Decoder layers that take one new token in one step of the compiled program, where nothing stands against it.

transformers computes a layer by some sixty small operations. With weights of 4 bits these calls take longer than
reading the weights. So a layer of a family in ``LAYERS`` that is given one token looks first whether it can be one step
(``kernels.token_step``). Its modules run in every other case: several tokens, a mask, a gradient, hooks, other kernels,
another cache, parts that the program does not know.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from transformers import PreTrainedModel
from transformers.activations import SiLUActivation
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer

from jointquant.quantization.ranges import DynamicRange
from jointquant.runtime.attention import CachePath
from jointquant.runtime.cache import PackedLayer
from jointquant.runtime.kernels.compiler import missing
from jointquant.runtime.kernels.packed_attention import unreadable
from jointquant.runtime.kernels.packed_product import KINDS
from jointquant.runtime.kernels.token_step import AttentionParts, LayerParts, NormParts, SiteParts, TokenStep
from jointquant.runtime.key_basis import KEY_BASIS, KEY_MEAN, QUERY_BASIS
from jointquant.runtime.linear import PackedLinear

SITES = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)
VALUES = (DynamicLayer, DynamicSlidingWindowLayer)
"""Layers of a cache that keep keys and values as they are, and hand out all that attention looks at."""
MULTIPLE = 8
"""Of the size of a head: whole registers."""


class NotOneStepError(Exception):
    """Why a layer cannot be one step."""


@dataclass
class Prepared:
    """A layer's step, and what it was made of, so that a change of it is seen.

    Attributes:
        step: the layer as the program is told of it; None: it cannot be one step.
        why: the reason in that case.
        state: of all that it was made of.
    """

    step: TokenStep | None
    why: str | None
    state: tuple[Any, ...]


class TokenLayer(nn.Module):
    """Mixed into a family's decoder layer."""

    prepared: Prepared | None = None

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """[batch, tokens, hidden] → the same; arguments are those of the family's layer."""
        output = None
        if not args and hidden_states.numel() == hidden_states.shape[-1] and not _watched(hidden_states):
            output = self._in_one_step(hidden_states, **kwargs)
        return super().forward(hidden_states, *args, **kwargs) if output is None else output

    def _in_one_step(
        self,
        hidden_states: Tensor,
        past_key_values: Any = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None,
        **others: Any,
    ) -> Tensor | None:
        """The output for one token [1, 1, hidden]; None: this is not a step."""
        kept = _kept_by(past_key_values, self)
        if kept is None or position_embeddings is None or attention_mask is not None:
            return None
        step = self.step(hidden_states.dtype)
        if step is None:
            return None
        hidden, attention = hidden_states.contiguous(), cast("Any", self.self_attn)
        if any(x.shape[-2:] != (1, attention.head_dim) or x.dtype != hidden.dtype for x in position_embeddings):
            return None
        if type(kept) in VALUES and step.parts.attention.ranges is None:
            index = attention.layer_idx
            return step.with_values(hidden, position_embeddings, lambda k, v: past_key_values.update(k, v, index))
        if type(kept) is PackedLayer and kept.path == attention.cache_path and kept.holds_tokens():
            return step.with_records(hidden, position_embeddings, *kept.with_room_for_one())
        return None

    def step(self, dtype: torch.dtype) -> TokenStep | None:
        """The layer as one step for hidden states of a dtype; None: its modules run."""
        state = _state(self, dtype)
        if self.prepared is None or self.prepared.state != state:
            try:
                self.prepared = Prepared(TokenStep(_parts(self, dtype)), None, _state(self, dtype))
            except NotOneStepError as error:
                self.prepared = Prepared(None, str(error), state)
        return self.prepared.step

    def extra_repr(self) -> str:
        """Shown by print(model)."""
        if self.prepared is None:
            return ""
        return "one token: one step" if self.prepared.step else f"one token: its modules, for {self.prepared.why}"

    def __getstate__(self) -> dict[str, Any]:
        """What copies and pickles hold: all but what is made anew."""
        return {**self.__dict__, "prepared": None}


class TokenLlamaLayer(TokenLayer, LlamaDecoderLayer):
    """Llama's."""


class TokenMistralLayer(TokenLayer, MistralDecoderLayer):
    """Mistral's."""


class TokenQwen2Layer(TokenLayer, Qwen2DecoderLayer):
    """Qwen 2's."""


class TokenQwen3Layer(TokenLayer, Qwen3DecoderLayer):
    """Qwen 3's, which has norms for each head of queries and keys."""


LAYERS: dict[type[nn.Module], type[TokenLayer]] = {
    LlamaDecoderLayer: TokenLlamaLayer,
    MistralDecoderLayer: TokenMistralLayer,
    Qwen2DecoderLayer: TokenQwen2Layer,
    Qwen3DecoderLayer: TokenQwen3Layer,
}
for _base, _own in LAYERS.items():
    _own.__name__ = _base.__name__  # device maps and sharding find layers by it


def take_tokens_in_steps(model: PreTrainedModel) -> None:
    """Give all decoder layers of a model that ``LAYERS`` knows their step, in place."""
    for module in model.modules():
        if type(module) in LAYERS:
            module.__class__ = LAYERS[type(module)]


def why_not(model: nn.Module) -> dict[str, str]:
    """By the names of decoder layers that were given a token: why they are no single step."""
    found = ((name, module) for name, module in model.named_modules() if isinstance(module, TokenLayer))
    return {name: layer.prepared.why for name, layer in found if layer.prepared and layer.prepared.why}


def _kept_by(cache: Any, layer: Any) -> Any:
    """What a cache keeps of a layer's keys and values; None where that is not one after the other in memory."""
    layers, index = getattr(cache, "layers", ()), layer.self_attn.layer_idx
    return layers[index] if index < len(layers) and not getattr(cache, "offloading", False) else None


def _watched(hidden: Tensor) -> bool:
    """Whether somebody wants to see what a layer's modules do, or another device does it."""
    return torch.is_grad_enabled() or hidden.device.type != "cpu" or _has_any_global_hook()


def _state(layer: Any, dtype: torch.dtype) -> tuple[Any, ...]:
    """All that a step is made of, in a form that shows a change: modules, weights, places in memory, hooks."""
    found: list[Any] = [dtype, layer.training]
    for parent in (layer, layer.self_attn, layer.mlp):
        for child in parent._modules.values():
            found.extend((child, _touched(child)))
            if isinstance(child, PackedLinear):
                found.append((child.epoch, child.mode, None if child.bias is None else child.bias.data_ptr()))
            elif "weight" in child._parameters:
                found.append(child.weight.data_ptr())
    found.append(getattr(layer.self_attn, "cache_path", None))
    found.extend(buffer.data_ptr() for buffer in layer.self_attn._buffers.values())
    return tuple(found)


def _touched(module: nn.Module) -> str | None:
    """What somebody did to a module so that it has to run itself; None: nothing."""
    if module._forward_hooks or module._forward_pre_hooks:
        return "has hooks"
    return "has a forward of its own" if "forward" in module.__dict__ else None


def _parts(layer: Any, dtype: torch.dtype) -> LayerParts:
    """What the layer is made of. Raises NotOneStepError."""
    _ask(missing() is None, f"the program {missing()}")
    _ask(dtype in KINDS, f"no hidden states of {dtype}")
    _ask(not layer.training, "the model is in training")
    for parent in (layer, layer.self_attn, layer.mlp):
        for name, child in parent.named_children():
            _ask(_touched(child) is None, f"{name} {_touched(child)}")
    _ask(isinstance(layer.mlp.act_fn, nn.SiLU | SiLUActivation), f"{type(layer.mlp.act_fn).__name__} is not SiLU")
    attn_in, o_in, mlp_in, down_in = (_site([layer.get_submodule(name) for name in names], dtype) for names in SITES)
    attn_norm, mlp_norm = _norm(layer.input_layernorm), _norm(layer.post_attention_layernorm)
    parts = LayerParts(attn_in, o_in, mlp_in, down_in, attn_norm, mlp_norm, _attention(layer.self_attn, dtype))
    reason = parts.refusal()
    _ask(reason is None, str(reason))
    return parts


def _site(linears: list[Any], dtype: torch.dtype) -> SiteParts:
    """Raises NotOneStepError."""
    first = linears[0]
    for linear in linears:
        _ask(isinstance(linear, PackedLinear), "a linear is not packed")
        _ask(linear.path == first.path and _equal(linear.input_buffers(), first.input_buffers()), "inputs differ")
    weights = tuple(linear.read_in_place(dtype) for linear in linears)
    _ask(all(weight is not None for weight in weights), "packed_rows is not the kernel")
    biases = tuple(None if linear.bias is None else linear.bias.detach().float().contiguous() for linear in linears)
    return SiteParts(first.path, first.input_buffers(), weights, biases)


def _equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def _norm(norm: Any) -> NormParts:
    return NormParts(norm.weight.detach(), norm.variance_epsilon)


def _norm_of_heads(norm: Any) -> NormParts | None:
    return None if norm is None else _norm(norm)


def _attention(module: Any, dtype: torch.dtype) -> AttentionParts:
    """Raises NotOneStepError."""
    path: CachePath | None = getattr(module, "cache_path", None)
    head_dim, heads = module.head_dim, module.q_proj.out_features // module.head_dim
    _ask(head_dim % MULTIPLE == 0, f"heads of {head_dim} channels, which {MULTIPLE} does not divide")
    plain = AttentionParts(
        heads,
        module.k_proj.out_features // head_dim,
        head_dim,
        module.scaling,
        _norm_of_heads(getattr(module, "q_norm", None)),
        _norm_of_heads(getattr(module, "k_norm", None)),
    )
    if not path:
        return plain
    buffers = {name: buffer.float().contiguous() for name, buffer in module.named_buffers(recurse=False)}
    for each in (path.key, path.value):
        reason = unreadable(each, head_dim, dtype, module.q_proj.weight_packed.device)
        _ask(reason is None, f"keys and values: {reason}")
    assert isinstance(path.key, DynamicRange)
    assert isinstance(path.value, DynamicRange)
    return replace(
        plain,
        key_mean=buffers.get(KEY_MEAN),
        key_basis=buffers.get(KEY_BASIS),
        query_basis=buffers.get(QUERY_BASIS),
        transform=path.transform,
        ranges=(path.key, path.value),
    )


def _ask(holds: bool, reason: str) -> None:
    if not holds:
        raise NotOneStepError(reason)
