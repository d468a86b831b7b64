"""A proposal of an architecture: what a traced model shows of itself, and what it does not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from jointquant.errors import require
from jointquant.models.architecture import Architecture, Mixture, Site
from jointquant.models.requirements import AbsoluteScores
from jointquant.models.slices import LinearSlice
from jointquant.probing import findings
from jointquant.probing.precision import InFloat64
from jointquant.probing.trace import Call, Trace, same


@dataclass
class Proposal:
    """What was found.

    Attributes:
        architecture: as far as it was found; the rest is as in Llama.
        doubts: what was not, one sentence each.
    """

    architecture: Architecture
    doubts: list[str] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Reading:
    """Linears of a layer that read one input, and the norm whose output that is, if any."""

    read: Tensor
    linears: tuple[str, ...]
    norm: str | None


def proposed(model: PreTrainedModel, seen: Trace) -> Proposal:
    """The architecture of a small model that was run. Raises InputError where it has no decoder layers."""
    layers = _layers(model)
    found = Proposal(Architecture(model_type=model.config.model_type, layers=layers))
    _ends(model, seen, found)
    first = _layer_with_attention(model, seen, layers)
    own = {name.removeprefix(f"{layers}.").split(".")[0] for name in seen.values}
    if first is not None and len(own) < model.config.num_hidden_layers:
        found.doubts.append("Some layers have something else than attention: say what recurrence is.")
    if first is None:
        found.doubts.append("No layer calls transformers' attention interface: where its values are is unknown.")
        return found
    _layer(model, seen, found, f"{layers}.{first}")
    _mixture(model, seen, found)
    if getattr(model.config, "attn_logit_softcapping", None) is not None:
        absolute = AbsoluteScores("caps its attention scores", key="attn_logit_softcapping")
        found.architecture = replace(found.architecture, absolute_scores=absolute)
    return found


def _layers(model: PreTrainedModel) -> str:
    count = model.config.num_hidden_layers
    lists = [name for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    require(bool(lists), f"{model.config.model_type} has no list of its {count} layers: expected a decoder of layers")
    return lists[0]


def _layer_with_attention(model: PreTrainedModel, seen: Trace, layers: str) -> int | None:
    numbers = sorted({int(name.removeprefix(f"{layers}.").split(".")[0]) for name in seen.values})
    dense = [n for n in numbers if not any(p.ndim == 3 for p in model.get_submodule(f"{layers}.{n}").parameters())]
    return next(iter([*dense, *numbers]), None)


def _ends(model: PreTrainedModel, seen: Trace, found: Proposal) -> None:
    layers, size = found.architecture.layers, model.config.hidden_size
    names = {id(module): name for name, module in model.named_modules()}
    head = names[id(model.get_output_embeddings())]
    first = names[id(model.get_input_embeddings())]
    others = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and module.embedding_dim == size and name != first
    ]
    norms = {
        n: c for n, c in seen.calls.items() if findings.is_norm(model.get_submodule(n)) and not n.startswith(layers)
    }
    final = next((n for n, call in norms.items() if same(call.returned, seen.calls[head].read)), None)
    kind = None if final is None else findings.norm_kind(model.get_submodule(final), size)
    logits = findings.logit_map(model.config, seen.calls[head].returned, seen.logits)
    if kind is None:
        found.doubts.append("The head reads no norm of a kind that is known: say what final_norm and norm are.")
    if logits is None:
        found.doubts.append("What the model makes of its head's output is of no known kind: say what logits is.")
    ends = found.architecture
    found.architecture = replace(
        ends,
        head=head,
        embeddings=(first, *others),
        final_norm=final or ends.final_norm,
        norm=kind or ends.norm,
        logits=logits or ends.logits,
    )


def _layer(model: PreTrainedModel, seen: Trace, found: Proposal, prefix: str) -> None:
    layer, calls = model.get_submodule(prefix), seen.within(prefix)
    attention = next(name for name in seen.values if name.startswith(f"{prefix}.")).removeprefix(f"{prefix}.")
    readings = list(_readings(layer, calls))
    inside = [each for each in readings if any(name.startswith(f"{attention}.") for name in each.linears)]
    if len(inside) != 2 or inside[1].norm is not None:
        found.doubts.append("Attention does not have one input, and one behind it: such layers are not described.")
        return
    attn_in, o_in = inside
    own = replace(
        found.architecture,
        attention=attention,
        output=o_in.linears[0],
        writer_norms=tuple(_writer_norms(layer, calls, {e.norm for e in readings}, model.config.hidden_size)),
    )
    values = seen.values[f"{prefix}.{attention}"]
    queries = calls[o_in.linears[0]].read.shape[-1]
    rows = (findings.values_in(name, calls[name].returned, values, queries) for name in attn_in.linears)
    value = next((each for each in rows if each is not None), None)
    if value is None:
        found.doubts.append("No rows of a linear are the values: say what value is, or why no R2 is possible.")
    sites = [Site("attn_in", attn_in.linears, attn_in.norm), Site("o_in", o_in.linears)]
    behind = [each for each in readings if each not in inside]
    beside = tuple(name for name in attn_in.linears if not name.startswith(f"{attention}."))
    if len(behind) == 2 and not beside:
        sites += [Site("mlp_in", behind[0].linears, behind[0].norm), Site("down_in", behind[1].linears)]
        own = _with_mlp(model, prefix, own, behind[0].linears, behind[1].linears[0])
    elif len(behind) == 1 and beside:
        sites += [Site("down_in", behind[0].linears)]
        own = _with_mlp(model, prefix, own, beside, behind[0].linears[0])
    elif any(parameter.ndim == 3 for parameter in layer.parameters()):
        sites += list(own.sites[2:])
    else:
        found.doubts.append("The MLP is not one input, and one behind it: such layers are not described.")
    found.architecture = replace(own, sites=tuple(sites), value=value or own.value)


def _with_mlp(
    model: PreTrainedModel, prefix: str, own: Architecture, linears: tuple[str, ...], down: str
) -> Architecture:
    up = _up(model, prefix, linears, down)
    gated = up is not None and (len(linears) > 1 or len(up.parts) > 1)  # doubling passes a ReLU as well
    up = up or LinearSlice(linears[0], parts=("up",), part="up")
    return replace(own, down=down, up=up, up_activation=None if gated else findings.activation_key(model.config))


def _readings(layer: nn.Module, calls: dict[str, Call]) -> Iterator[Reading]:
    """What linears read, in order; those of experts and norms on single heads are left out."""
    norms = {name: call for name, call in calls.items() if findings.is_norm(layer.get_submodule(name))}
    groups: list[tuple[Tensor, list[str]]] = []
    linears = [
        name for name, _ in layer.named_modules() if name in calls and isinstance(layer.get_submodule(name), nn.Linear)
    ]
    for name in sorted(linears, key=list(calls).index):
        group = next((names for read, names in groups if same(read, calls[name].read)), None)
        if group is None:
            groups.append((calls[name].read, [name]))
        else:
            group.append(name)
    for read, names in groups:
        norm = next((name for name, call in norms.items() if same(call.returned, read)), None)
        yield Reading(read, tuple(names), norm)


def _writer_norms(
    layer: nn.Module, calls: dict[str, Call], reading: set[str | None], hidden_size: int
) -> Iterator[str]:
    """Norms whose output no linear reads: they stand between what a module writes and the residual sum."""
    for name, module in layer.named_modules():
        if name in calls and findings.is_norm(module) and name not in reading:
            weight = getattr(module, "weight", None)
            wide = isinstance(weight, Tensor) and weight.shape == (hidden_size,)
            produced = any(same(calls[name].read, call.returned) for other, call in calls.items() if other != name)
            if wide and produced and "." not in name:
                yield name


def _up(model: PreTrainedModel, prefix: str, linears: tuple[str, ...], down: str) -> LinearSlice | None:
    """The rows that, doubled, double what the down projection reads; None: an activation function is in between."""
    layer = model.get_submodule(prefix)
    reader = layer.get_submodule(down)
    assert isinstance(reader, nn.Linear)
    before = _read_by(model, reader)
    for name in reversed(linears):
        linear = layer.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        for part in findings.parts_of(name, linear.out_features, reader.in_features):
            rows, kept = part.rows(reader.in_features, reader.in_features), linear.state_dict()
            kept = {key: tensor.clone() for key, tensor in kept.items()}
            for tensor in (linear.weight, linear.bias):
                if tensor is not None:
                    tensor.data[rows] *= 2
            doubled = findings.alike(_read_by(model, reader), 2 * before)
            linear.load_state_dict(kept)
            if doubled:
                return part
    return None


def _read_by(model: PreTrainedModel, linear: nn.Module) -> Tensor:
    """What a linear reads of some tokens, in a model whose layers before it stay as they are."""
    reads: list[Tensor] = []
    hook = linear.register_forward_pre_hook(lambda _, args: reads.append(args[0].clone()))
    ids = torch.arange(1, 17).unsqueeze(0)
    with InFloat64(), torch.no_grad():
        model(input_ids=ids, use_cache=False)
    hook.remove()
    return reads[0]


def _mixture(model: PreTrainedModel, seen: Trace, found: Proposal) -> None:
    """Experts, where layers have them: the module of two tensors of three dimensions, and what stands beside it."""
    layers = found.architecture.layers
    for prefix in (f"{layers}.{number}" for number in range(model.config.num_hidden_layers)):
        layer, calls = model.get_submodule(prefix), seen.within(prefix)
        fused = next(
            (n for n, m in layer.named_modules() if isinstance(getattr(m, "gate_up_proj", None), nn.Parameter)), None
        )
        if fused is None:
            continue
        if not hasattr(layer.get_submodule(fused), "hidden_dim"):
            found.doubts.append(f"The experts of {fused} are of another kind than those that can be taken apart.")
            return
        block = fused.rpartition(".")[0]
        beside = {n: m for n, m in layer.get_submodule(block).named_children() if f"{block}.{n}" != fused}
        shared = next((n for n, m in beside.items() if hasattr(m, "down_proj")), None)
        gate = next((n for n, m in beside.items() if isinstance(m, nn.Linear) and m.out_features == 1), None)
        weights = {n: getattr(m, "weight", None) for n, m in beside.items() if n not in (shared, gate)}
        router = next((n for n, w in weights.items() if isinstance(w, Tensor) and w.ndim == 2), None)
        norms = (
            n
            for n, c in calls.items()
            if findings.is_norm(layer.get_submodule(n)) and same(c.returned, calls[block].read)
        )
        chosen = next((key for key in ("num_experts_per_tok", "top_k", "moe_topk") if hasattr(model.config, key)), None)
        if router is None or chosen is None:
            found.doubts.append(f"The experts of {block} have no router that is known: say what mixture is.")
            return
        own = Mixture(
            block=block,
            experts=fused,
            router=f"{block}.{router}",
            shared=None if shared is None else f"{block}.{shared}",
            shared_gate=None if gate is None else f"{block}.{gate}",
            stored_block=block,
            norm=next(norms, Mixture().norm),
            chosen=chosen,
        )
        found.architecture = replace(found.architecture, mixture=own)
        found.doubts.append("What checkpoints call the experts' tensors is not in a model: compare mixture.stored_*.")
        return
