"""The facts of one model family that fusion, rotation and quantization need, as data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Site:
    """A place in a decoder layer where linears read one shared input.

    Attributes:
        name: attn_in, o_in, mlp_in or down_in.
        linears: the linears that read here, relative to the layer.
        norm: the norm whose output this is, fused into those linears; None where no norm stands before them.
    """

    name: str
    linears: tuple[str, ...]
    norm: str | None = None


@dataclass(frozen=True)
class Architecture:
    """A decoder-only family. Names are module paths: of the model, or relative to a decoder layer.

    Attributes:
        model_type: the ``model_type`` of its transformers configuration.
        sites: the sites of a layer in the order in which the forward pass reaches them.
        value: the linear that produces the values.
        output: the attention's output projection (reads the values' heads, writes to the residual stream).
        down: the MLP's output projection (writes to the residual stream).
        attention: the attention module.
        embeddings: modules of the model whose rows are written to the residual stream.
        layers: the list of decoder layers.
        final_norm: the norm before the head.
        head: the output head.
    """

    model_type: str
    sites: tuple[Site, ...] = (
        Site("attn_in", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), norm="input_layernorm"),
        Site("o_in", ("self_attn.o_proj",)),
        Site("mlp_in", ("mlp.gate_proj", "mlp.up_proj"), norm="post_attention_layernorm"),
        Site("down_in", ("mlp.down_proj",)),
    )
    value: str = "self_attn.v_proj"
    output: str = "self_attn.o_proj"
    down: str = "mlp.down_proj"
    attention: str = "self_attn"
    embeddings: tuple[str, ...] = ("model.embed_tokens",)
    layers: str = "model.layers"
    final_norm: str = "model.norm"
    head: str = "lm_head"

    def site(self, name: str) -> Site:
        """The site called ``name``. Raises KeyError for an unknown one."""
        for site in self.sites:
            if site.name == name:
                return site
        raise KeyError(f"unknown site {name!r}: expected one of {[s.name for s in self.sites]}")

    @property
    def residual_sites(self) -> tuple[Site, ...]:
        """The sites that read the residual stream through a norm: where R1 acts."""
        return tuple(site for site in self.sites if site.norm is not None)

    @property
    def linears(self) -> tuple[str, ...]:
        """All linears of a layer, relative to it, in forward order."""
        return tuple(name for site in self.sites for name in site.linears)

    @property
    def writers(self) -> tuple[str, ...]:
        """The linears of a layer that write to the residual stream."""
        return (self.output, self.down)

    def layer_prefix(self, index: int) -> str:
        """Full name of decoder layer ``index``."""
        return f"{self.layers}.{index}"
