"""The facts of one model family that fusion, rotation and quantization need, as data."""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from jointquant.models.logits import LogitMap, Unchanged
from jointquant.models.norms import NormKind, RMSNorm
from jointquant.models.recurrence import Recurrence
from jointquant.models.requirements import AbsoluteScores, Fixed, Same
from jointquant.models.slices import HeadRows, LinearSlice
from jointquant.models.wrapper import Wrapper

if TYPE_CHECKING:  # the table of families is read without torch, which takes seconds to import
    from torch import nn
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class Site:
    """A place in a decoder layer where linears read one shared input.

    Attributes:
        name: attn_in, q_latent_in, kv_latent_in, o_in, mlp_in or down_in; behind a dot, which expert's it is.
        linears: the linears that read here, relative to the layer.
        norm: the norm whose output this is, fused into those linears; None where no norm stands before them.
        kept: what else reads here, and stays in high precision: a router.
        latent: the linear whose first outputs that norm reads, a vector inside the attention; None where it reads the
            residual stream.
    """

    name: str
    linears: tuple[str, ...]
    norm: str | None = None
    kept: tuple[str, ...] = ()
    latent: str | None = None

    @property
    def reads_residual(self) -> bool:
        """Whether it is the residual stream, behind a norm: where R1 acts."""
        return self.norm is not None and self.latent is None

    @property
    def readers(self) -> tuple[str, ...]:
        """All that reads here. The input of the first is the whole of the site's, whichever expert reads it."""
        return (*self.kept, *self.linears)


def stage_of(site: str) -> str:
    """What a site of this name is, whichever expert's: its name up to the dot."""
    return site.partition(".")[0]


@dataclass(frozen=True)
class Mlp:
    """Two linears of a layer: channels of the one reach the other one by one.

    Attributes:
        up: the rows that produce the channels.
        down: the linear that reads them and writes to the residual stream.
    """

    up: LinearSlice
    down: str


@dataclass(frozen=True)
class FusedExperts:
    """How transformers keeps all experts of a layer in two tensors, called ``gate_up_proj`` and ``down_proj``.

    Attributes:
        transposed: whether an expert's part is [in, out], and not [out, in].
        interleaved: whether outputs of gate and up take turns, and do not follow each other.
        biases: whether there are two tensors more, ``gate_up_proj_bias`` and ``down_proj_bias`` [experts, out].
        limit: the attribute that says by how much a gate and an up projection are cut off, in families that multiply
            (u + 1) by g · sigmoid(α g) then; None: u is multiplied by what g becomes by an activation function.
        stored: whether checkpoints hold these tensors too, and not one an expert and projection.
        scored: whether they are handed every token once for each expert, times its score there, which is 0 where the
            expert is not chosen, and not the routing.
    """

    transposed: bool = False
    interleaved: bool = False
    biases: bool = False
    limit: str | None = None
    stored: bool = False
    scored: bool = False


@dataclass(frozen=True)
class Mixture:
    """Where layers have experts instead of one MLP, and what belongs to them. Names are relative to a layer.

    Layers that have none of these modules are dense, as the rest of the architecture describes them.

    Attributes:
        block: the module that routes tokens to experts.
        experts: the module of the experts; each has a ``gate_proj``, an ``up_proj`` and a ``down_proj``.
        router: the module whose weight chooses the experts of a token.
        shared: an expert that every token passes, where there is one.
        shared_gate: the linear that scales its output.
        stored_block: what checkpoints call ``block``.
        stored_projections: what checkpoints call ``gate_proj``, ``up_proj`` and ``down_proj`` of an expert.
        norm: the norm before all of it.
        chosen: the key of the configuration that says how many experts a token passes.
        fused: how transformers keeps the experts.
    """

    block: str = "mlp"
    experts: str = "mlp.experts"
    router: str = "mlp.gate"
    shared: str | None = None
    shared_gate: str | None = None
    stored_block: str = "mlp"
    stored_projections: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
    norm: str = "post_attention_layernorm"
    chosen: str = "num_experts_per_tok"
    fused: FusedExperts = FusedExperts()

    def count(self, layer: nn.Module) -> int:
        """The experts of a layer, fused or not; 0 in a dense one."""
        try:
            experts = layer.get_submodule(self.experts)
        except AttributeError:
            return 0
        return len(experts) if isinstance(experts, Sized) else int(experts.num_experts)  # type: ignore[arg-type]

    def routed_share(self, layer: nn.Module, config: PretrainedConfig) -> float:
        """The part of the tokens that an expert of a layer sees, if all of them see as many; 1 in a dense layer."""
        count = self.count(layer)
        return getattr(config, self.chosen) / count if count else 1.0

    @property
    def kept(self) -> tuple[str, ...]:
        """What reads the residual stream and stays in high precision."""
        return (self.router, *([self.shared_gate] if self.shared_gate else []))


PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
"""The linears of an expert."""


@dataclass(frozen=True)
class Architecture:
    """A decoder-only family. Names are module paths: of the model, or relative to a decoder layer.

    Attributes:
        model_type: the ``model_type`` of its transformers configuration.
        sites: the sites of a layer in the order in which the forward pass reaches them.
        value: the rows, of one of a layer's linears, that produce the values; None in a layer without attention.
        up: the rows, of one of a layer's linears, whose outputs reach the down projection channel by channel.
        up_activation: the key of the configuration that names the function those outputs pass, or their limit; None
            where they are multiplied by what passed one.
        output: the attention's output projection (reads the values' heads, writes to the residual stream).
        down: the MLP's output projection (writes to the residual stream).
        attention: the attention module, or what a layer has instead.
        embeddings: modules of the model whose rows are written to the residual stream.
        layers: the list of decoder layers.
        final_norm: the norm before the head.
        head: the output head.
        norm: what the norms before the sites and the head compute.
        writer_norms: norms of a layer on what its writers write, where there are any: no R1 passes them.
        absolute_scores: why the keys cannot be centred, where they cannot.
        direct_queries: the linear that some models of a family with latents have instead of the queries' latent.
        gated_values: what happens to the values behind attention, where no R2 passes it and no mean is taken of them.
        logits: what the model makes of its head's output.
        requirements: what the configuration must say for all this to hold.
        mixture: where layers have experts; ``of_layer`` fills ``sites``, ``residual`` and ``experts`` from it.
        residual: the sites of a layer of experts that read the residual stream, each with all that reads there.
        experts: the MLPs of such a layer.
        recurrence: what some layers have instead of attention; ``of_layer`` fills the rest from it.
        wrapper: what stands around the text model, in a model that reads images as well.
    """

    model_type: str
    sites: tuple[Site, ...] = (
        Site("attn_in", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), norm="input_layernorm"),
        Site("o_in", ("self_attn.o_proj",)),
        Site("mlp_in", ("mlp.gate_proj", "mlp.up_proj"), norm="post_attention_layernorm"),
        Site("down_in", ("mlp.down_proj",)),
    )
    value: LinearSlice | None = field(default_factory=lambda: LinearSlice("self_attn.v_proj"))
    up: LinearSlice = field(default_factory=lambda: LinearSlice("mlp.up_proj", parts=("up",), part="up"))
    up_activation: str | None = None
    output: str = "self_attn.o_proj"
    down: str = "mlp.down_proj"
    attention: str = "self_attn"
    embeddings: tuple[str, ...] = ("model.embed_tokens",)
    layers: str = "model.layers"
    final_norm: str = "model.norm"
    head: str = "lm_head"
    norm: NormKind = field(default_factory=RMSNorm)
    writer_norms: tuple[str, ...] = ()
    absolute_scores: AbsoluteScores | None = None
    direct_queries: str | None = None
    gated_values: str | None = None
    logits: LogitMap = field(default_factory=Unchanged)
    requirements: tuple[Fixed | Same, ...] = ()
    mixture: Mixture | None = None
    residual: tuple[Site, ...] = ()
    experts: tuple[Mlp, ...] = ()
    recurrence: Recurrence | None = None
    wrapper: Wrapper | None = None

    def check(self, config: PretrainedConfig) -> None:
        """Refuse variants of the family that this data does not describe.

        Raises:
            InputError: names the setting, its value, why it matters and what was expected.
        """
        text = config.get_text_config(decoder=True)
        if self.wrapper is not None:
            self.wrapper.check(text, self.model_type)
        for requirement in self.requirements:
            requirement.check(text)

    def within(self, model_type: str, wrapper: Wrapper) -> Architecture:
        """The same of a model that has this one inside."""
        return replace(
            self,
            model_type=model_type,
            embeddings=tuple(map(wrapper.named, self.embeddings)),
            layers=wrapper.named(self.layers),
            final_norm=wrapper.named(self.final_norm),
            head=wrapper.named(self.head),
            wrapper=wrapper,
        )

    def of_layer(self, layer: nn.Module) -> Architecture:
        """The same for one layer: one that has attention or none; its experts' sites are named one by one."""
        count = 0 if self.mixture is None else self.mixture.count(layer)
        recurrent = self.recurrence is not None and hasattr(layer, self.recurrence.module)
        own = _with_recurrence(self) if recurrent else self
        if own.latent_sites:
            own = _with_latents(own, layer)
        return _with_experts(own, count) if count else own

    @property
    def residual_sites(self) -> tuple[Site, ...]:
        """The sites that read the residual stream through a norm, one a norm: where R1 acts."""
        return self.residual or tuple(site for site in self.sites if site.reads_residual)

    @property
    def latent_sites(self) -> tuple[Site, ...]:
        """The sites that read a latent: a vector inside the attention, behind a norm of its own."""
        return tuple(site for site in self.sites if site.latent is not None)

    @property
    def normed_sites(self) -> tuple[Site, ...]:
        """The sites behind a norm, one a norm."""
        return (*self.residual_sites, *self.latent_sites)

    @property
    def whole_sites(self) -> tuple[Site, ...]:
        """All sites, those that read the residual stream with all that reads there."""
        return (*self.residual, *self.inner_sites) if self.residual else self.sites

    @property
    def inner_sites(self) -> tuple[Site, ...]:
        """The other sites."""
        return tuple(site for site in self.sites if not site.reads_residual)

    @property
    def scalable_sites(self) -> tuple[Site, ...]:
        """The sites whose input something divides channel by channel: a norm, or the rows of a linear."""
        fed = {*self.downs} if self.value is None else {self.output, *self.downs}
        return tuple(site for site in self.whole_sites if site.norm is not None or fed & set(site.linears))

    @property
    def linears(self) -> tuple[str, ...]:
        """All linears of a layer, relative to it, in forward order."""
        return tuple(name for site in self.sites for name in site.linears)

    @property
    def mlps(self) -> tuple[Mlp, ...]:
        """The MLPs of a layer: one, or that of each expert."""
        return self.experts or (Mlp(self.up, self.down),)

    @property
    def downs(self) -> tuple[str, ...]:
        """The down projections of a layer: where R4 acts."""
        return tuple(mlp.down for mlp in self.mlps)

    @property
    def writers(self) -> tuple[str, ...]:
        """The linears of a layer that write to the residual stream."""
        return (self.output, *self.downs)

    def layer_prefix(self, index: int) -> str:
        """Full name of decoder layer ``index``."""
        return f"{self.layers}.{index}"


@cache
def _with_recurrence(architecture: Architecture) -> Architecture:
    own = architecture.recurrence
    assert own is not None
    mlp = (site for site in architecture.sites if site.name not in ("attn_in", "o_in"))
    before = Site("attn_in", own.inputs, own.norm, own.kept), Site("o_in", (own.output,))
    return replace(architecture, sites=(*before, *mlp), value=None, attention=own.module, output=own.output)


def _with_latents(architecture: Architecture, layer: nn.Module) -> Architecture:
    """With the sizes of a layer's heads, and direct queries where it has no latent for them."""
    attention: Any = layer.get_submodule(architecture.attention)
    there = dict(attention.named_children())
    missing = [site for site in architecture.latent_sites if str(site.latent).rpartition(".")[2] not in there]
    own = _with_direct_queries(architecture, missing[0]) if missing else architecture
    return _of_heads(own, int(attention.num_heads), int(attention.qk_nope_head_dim))


@cache
def _with_direct_queries(architecture: Architecture, latent: Site) -> Architecture:
    direct = architecture.direct_queries
    assert direct is not None
    first, *others = (site for site in architecture.sites if site is not latent)
    linears = tuple(direct if name == latent.latent else name for name in first.linears)
    return replace(architecture, sites=(replace(first, linears=linears), *others))


@cache
def _of_heads(architecture: Architecture, heads: int, before: int) -> Architecture:
    assert architecture.value is not None
    return replace(architecture, value=HeadRows(architecture.value.linear, heads=heads, before=before))


@cache
def _with_experts(architecture: Architecture, count: int) -> Architecture:
    mixture = architecture.mixture
    assert mixture is not None
    named = {str(number): f"{mixture.experts}.{number}" for number in range(count)}
    if mixture.shared is not None:
        named = {"shared": mixture.shared} | named
    sites = [site for site in architecture.sites if site.name not in ("mlp_in", "down_in")]
    attention = tuple(site for site in sites if site.reads_residual)
    inputs: list[str] = []
    mlps: list[Mlp] = []
    for number, expert in named.items():
        gate, up, down = (f"{expert}.{projection}" for projection in PROJECTIONS)
        sites += [Site(f"mlp_in.{number}", (gate, up), mixture.norm), Site(f"down_in.{number}", (down,))]
        inputs += [gate, up]
        mlps.append(Mlp(LinearSlice(up, parts=("up",), part="up"), down))
    whole = Site("mlp_in", tuple(inputs), mixture.norm, mixture.kept)
    return replace(architecture, mixture=None, sites=tuple(sites), residual=(*attention, whole), experts=tuple(mlps))
