"""Families in GGUF: the architecture there, and what it asks of a model beyond sizes, norms and positions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from gguf import MODEL_ARCH, GGUFWriter
from transformers import PretrainedConfig

from jointquant.errors import require
from jointquant.export.gguf_rope import local_rope
from jointquant.models.layer import head_dim_of

Further = Callable[[GGUFWriter, PretrainedConfig], None]
"""Writes more keys of the metadata. Raises InputError for a model that llama.cpp's architecture does not compute."""

PLAIN = ("default", "linear", "yarn")


@dataclass(frozen=True)
class Family:
    """What GGUF makes of a family.

    Attributes:
        arch: its architecture there.
        interleaved: rotary pairs are neighbours there, and halves of a head in transformers: q and k are permuted.
        window: the key of the configuration whose sliding window the architecture does not have.
        activation: the function in its MLPs.
        rope: values of ``rope_type`` that it computes.
        tied: its head is the embedding, under the one name.
        further: what else is written.
    """

    arch: MODEL_ARCH
    interleaved: bool = False
    window: str | None = None
    activation: str = "silu"
    rope: tuple[str, ...] = PLAIN
    tied: bool = False
    further: tuple[Further, ...] = ()


def add_experts(writer: GGUFWriter, config: PretrainedConfig) -> None:
    """How many there are, and how many a token passes."""
    writer.add_expert_count(getattr(config, "num_local_experts", None) or config.num_experts)
    writer.add_expert_used_count(config.num_experts_per_tok)


def add_expert_sizes(writer: GGUFWriter, config: PretrainedConfig, *, normalized: bool) -> None:
    """The size of experts, in models that have them in every layer.

    Args:
        writer: of the file.
        config: of the model.
        normalized: whether llama.cpp makes the weights of the chosen experts sum to 1 in this family.

    Raises:
        InputError: layers without experts, or weights that are otherwise.
    """
    dense = config.decoder_sparse_step != 1 or bool(config.mlp_only_layers)
    require(not dense, "no GGUF export of a mixture with dense layers: llama.cpp has experts in every layer here")
    words = f"no GGUF export of norm_topk_prob {config.norm_topk_prob}: llama.cpp computes {normalized} in this family"
    require(bool(config.norm_topk_prob) == normalized, words)
    writer.add_expert_feed_forward_length(config.moe_intermediate_size)


def add_shared_expert(writer: GGUFWriter, config: PretrainedConfig) -> None:
    """The expert that every token passes."""
    writer.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)


def add_factors(writer: GGUFWriter, config: PretrainedConfig) -> None:
    """Granite's on embeddings, scores, residual sums and logits."""
    writer.add_embedding_scale(config.embedding_multiplier)
    writer.add_attention_scale(config.attention_multiplier)
    writer.add_residual_scale(config.residual_multiplier)
    writer.add_logit_scale(config.logits_scaling)


def add_caps(writer: GGUFWriter, config: PretrainedConfig) -> None:
    """Of attention's scores and of logits. Raises InputError for a model without one of them."""
    caps = config.attn_logit_softcapping, config.final_logit_softcapping
    require(None not in caps, f"no GGUF export of scores or logits without a cap, as llama.cpp has both: found {caps}")
    writer.add_attn_logit_softcapping(caps[0])
    writer.add_final_logit_softcapping(caps[1])


def no_caps(_: GGUFWriter, config: PretrainedConfig) -> None:
    """Raises InputError for a model with one."""
    caps = config.attn_logit_softcapping, config.final_logit_softcapping
    require(caps == (None, None), f"no GGUF export of capped scores or logits in this family: found {caps}")


def scores_by_head(_: GGUFWriter, config: PretrainedConfig, *, largest: int) -> None:
    """Raises InputError for queries that are divided by another root than llama.cpp takes.

    Args:
        config: of the model.
        largest: layers of the largest one, whose queries llama.cpp divides by √(hidden / heads) instead of √head_dim.
    """
    wide = config.hidden_size // config.num_attention_heads
    taken = wide if config.num_hidden_layers == largest else head_dim_of(config)
    scalar = config.query_pre_attn_scalar
    require(scalar == taken, f"no GGUF export of query_pre_attn_scalar {scalar}: llama.cpp computes with {taken} here")


def add_windows(writer: GGUFWriter, config: PretrainedConfig) -> None:
    """Layers with a sliding window, all but each nth. Raises InputError for another order of layers."""
    period = period_of(config.layer_types)
    require(period is not None, "no GGUF export of this layer_types: llama.cpp has full attention in each nth layer")
    assert period is not None
    writer.add_sliding_window(config.sliding_window)
    writer.add_sliding_window_pattern(period)
    local = local_rope(config)
    require(local.get("rope_type", "default") == "default", "no GGUF export of scaled positions in layers with windows")
    writer.add_rope_freq_base_swa(local["rope_theta"])


def period_of(layer_types: list[str]) -> int | None:
    """n where each nth layer has full attention and no other; 0 where none has; None where neither holds."""
    full = [kind == "full_attention" for kind in layer_types]
    if not any(full):
        return 0
    period = full.index(True) + 1
    return period if full == [(index + 1) % period == 0 for index in range(len(full))] else None


def every_fourth_without_rope(_: GGUFWriter, config: PretrainedConfig) -> None:
    """Raises InputError for a model that leaves out rotary embeddings elsewhere than in each fourth layer."""
    rotary = [bool(kept) for kept in config.no_rope_layers]
    expected = [(index + 1) % 4 != 0 for index in range(config.num_hidden_layers)]
    require(rotary == expected, "no GGUF export of this no_rope_layers: llama.cpp leaves out each fourth layer's alone")


def heads_fill_hidden(_: GGUFWriter, config: PretrainedConfig) -> None:
    """Raises InputError for heads that are together wider or narrower than the residual stream."""
    wide = config.num_attention_heads * head_dim_of(config)
    words = f"no GGUF export of attention that is {wide} wide in this family: expected the hidden size"
    require(wide == config.hidden_size, f"{words}, {config.hidden_size}")


def no_windows(_: GGUFWriter, config: PretrainedConfig) -> None:
    """Raises InputError for a model whose layers have windows."""
    windows = config.sliding_window is not None or any(kind != "full_attention" for kind in config.layer_types)
    require(not windows, "no GGUF export of this family's sliding windows: expected a model that has none")


LLAMA_ROPE = (*PLAIN, "llama3")
NORMALIZED, AS_CHOSEN = partial(add_expert_sizes, normalized=True), partial(add_expert_sizes, normalized=False)

FAMILIES = {
    "exaone4": Family(MODEL_ARCH.EXAONE4, rope=LLAMA_ROPE, further=(no_windows, heads_fill_hidden)),
    "gemma2": Family(
        MODEL_ARCH.GEMMA2,
        activation="gelu_pytorch_tanh",
        rope=("default",),
        tied=True,
        further=(add_caps, add_windows, partial(scores_by_head, largest=46)),
    ),
    "gemma3_text": Family(
        MODEL_ARCH.GEMMA3,
        activation="gelu_pytorch_tanh",
        rope=("default", "linear"),
        further=(no_caps, add_windows, partial(scores_by_head, largest=62)),
    ),
    "glm": Family(MODEL_ARCH.CHATGLM, rope=("default",), further=(heads_fill_hidden,)),
    "glm4": Family(MODEL_ARCH.GLM4, rope=("default",)),
    "granite": Family(MODEL_ARCH.GRANITE, interleaved=True, rope=LLAMA_ROPE, further=(add_factors,)),
    "llama": Family(MODEL_ARCH.LLAMA, interleaved=True, rope=LLAMA_ROPE),
    "mistral": Family(MODEL_ARCH.LLAMA, interleaved=True, window="sliding_window", rope=LLAMA_ROPE),
    "mixtral": Family(
        MODEL_ARCH.LLAMA, interleaved=True, window="sliding_window", rope=LLAMA_ROPE, further=(add_experts,)
    ),
    "olmo2": Family(MODEL_ARCH.OLMO2),
    "phi3": Family(MODEL_ARCH.PHI3, window="sliding_window", rope=("default", "longrope")),
    "qwen2": Family(MODEL_ARCH.QWEN2, window="sliding_window"),
    "qwen2_moe": Family(
        MODEL_ARCH.QWEN2MOE, window="sliding_window", further=(add_experts, AS_CHOSEN, add_shared_expert)
    ),
    "qwen3": Family(MODEL_ARCH.QWEN3, window="sliding_window"),
    "qwen3_moe": Family(MODEL_ARCH.QWEN3MOE, window="sliding_window", further=(add_experts, NORMALIZED)),
    "smollm3": Family(
        MODEL_ARCH.SMOLLM3, interleaved=True, window="sliding_window", further=(every_fourth_without_rope,)
    ),
}
