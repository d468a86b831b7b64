"""An artifact over the tokens of many requests, which stand in one row; who keeps keys and values is the server.

Everything but the cache is the artifact as ``jointquant.load`` builds it: R4, the inputs' quantizers and the packed
products are in its linears. Each attention passes queries, keys and values through its cache path (R3, the keys' basis,
the cache's quantizers) and hands them to its **pages**, a module of the server's that keeps them and attends.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from jointquant.models.architecture import Architecture
from jointquant.models.layer import head_dim_of

PAGED = "jointquant_paged"
"""The attention, in transformers' registry, that hands over to a server's pages."""
PAGES = "pages"
"""The attribute of an attention module that holds them."""


@dataclass(frozen=True)
class PagesFacts:
    """What a server must know of a layer's attention.

    Attributes:
        name: of the attention module in the model.
        heads: of queries.
        kv_heads: of keys and values.
        head_dim: size of a head.
        scaling: factor of the scores.
        sliding_window: how many tokens attention looks at, its own among them; None: all.
        softcap: c where scores pass c · tanh(· / c).
    """

    name: str
    heads: int
    kv_heads: int
    head_dim: int
    scaling: float
    sliding_window: int | None
    softcap: float | None


def paged_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **_: Any
) -> tuple[Tensor, None]:
    """The pages' attention behind the module's cache path.

    Args:
        module: has ``PAGES``, and its cache path if it has one.
        query: [1, heads, tokens, head_dim], the tokens of all requests one behind the other.
        key: [1, kv_heads, tokens, head_dim].
        value: [1, kv_heads, tokens, head_dim].
        attention_mask: None; the server knows which tokens belong together.

    Returns:
        [1, tokens, heads, head_dim], and None for the weights.
    """
    path = getattr(module, "cache_path", None)
    if path is not None:
        query, key, value = path(query, key, value, dict(module.named_buffers(recurse=False)))
    rows = (x[0].transpose(0, 1).flatten(1).contiguous() for x in (query, key, value))
    mixed: Tensor = getattr(module, PAGES)(*rows)
    return mixed.view(1, query.shape[2], query.shape[1], -1), None


def no_mask(*_: Any, **__: Any) -> None:
    """The server makes its own."""
    return


AttentionInterface.register(PAGED, paged_attention)
AttentionMaskInterface.register(PAGED, no_mask)


class Rows:
    """An artifact whose attention is a server's.

    Args:
        artifact: as ``jointquant.load`` gives it; changed in place.
        architecture: of its family.
        pages: makes the pages of a layer: a module of queries [tokens, heads · head_dim], keys and values
            [tokens, kv_heads · head_dim] that gives [tokens, heads · head_dim].
    """

    def __init__(
        self, artifact: PreTrainedModel, architecture: Architecture, pages: Callable[[PagesFacts], nn.Module]
    ) -> None:
        self.artifact, self._logits = artifact, architecture.logits.of(artifact.config)
        for index, layer in enumerate(artifact.get_submodule(architecture.layers).children()):
            attention = layer.get_submodule(architecture.attention)
            name = f"{architecture.layer_prefix(index)}.{architecture.attention}"
            setattr(attention, PAGES, pages(facts_of(name, attention, artifact.config)))
        artifact.config._attn_implementation = PAGED

    def embed(self, tokens: Tensor) -> Tensor:
        """[tokens] → [tokens, hidden]."""
        embedded: Tensor = cast("Any", self.artifact.get_input_embeddings())(tokens)
        return embedded

    def hidden_states(self, tokens: Tensor | None, positions: Tensor, embedded: Tensor | None = None) -> Tensor:
        """Token ids [tokens], or what ``embed`` makes of them, at positions [tokens] → [tokens, hidden], normed."""
        read = {"input_ids": tokens} if embedded is None else {"inputs_embeds": embedded}
        rows = {name: None if x is None else x[None] for name, x in read.items()}
        model = cast("Any", self.artifact.base_model)
        hidden: Tensor = model(**rows, position_ids=positions[None], use_cache=False).last_hidden_state[0]
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """[tokens, hidden] → [tokens, vocabulary]."""
        return self._logits(cast("Any", self.artifact.get_output_embeddings())(hidden))


def facts_of(name: str, attention: nn.Module, config: Any) -> PagesFacts:
    """Of the attention module called ``name`` in a model of this configuration."""
    head_dim = head_dim_of(config)
    window = getattr(attention, "sliding_window", None)
    everywhere = None if hasattr(attention, "sliding_window") else getattr(config, "sliding_window", None)
    return PagesFacts(
        name,
        config.num_attention_heads,
        getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
        head_dim,
        float(getattr(attention, "scaling", head_dim**-0.5)),
        everywhere if window is None else window,
        getattr(config, "attn_logit_softcapping", None),
    )
