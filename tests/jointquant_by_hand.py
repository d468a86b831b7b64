"""JointQuant as it is described, written out in plain torch and transformers: nothing of this package is asked.

One R1 that Whip trains on all layers at once, SmoothQuant at α = ½ where a linear feeds the site, weights of 4 bits in
groups rounded to nearest, inputs of 4 bits by each token's range. What no description settles is an input: the windows,
where R1 starts, and which tokens each step sees. In float64 until weights are rounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

GROUP, STEPS, RATE, CLIP = 128, 100, 5e-4, 1.0


@dataclass(frozen=True)
class Inputs:
    """What the method is given.

    Attributes:
        model: the folder of a Llama.
        windows: [n, T] token ids to calibrate on.
        at_once: windows that run together; a layer's tokens come in this order: of these windows, what q reads, then
            what gate reads, and so on with the next windows.
        start: [hidden, hidden], where R1 starts.
        batches: numbers of the tokens that each step sees, of every layer.
        largest: steps from 0 to the largest absolute weight of a group.
    """

    model: Path
    windows: Tensor
    at_once: int
    start: Tensor
    batches: Iterator[Tensor]
    largest: float


@dataclass(frozen=True)
class Found:
    """What came out: the losses before each step, R1, and the perplexity."""

    losses: list[float]
    rotation: Tensor
    perplexity: float


@torch.no_grad()
def jointquant_by_hand(inputs: Inputs, held_out: Tensor) -> Found:
    """Quantize, and measure on windows [n, T]."""
    model = AutoModelForCausalLM.from_pretrained(inputs.model, dtype=torch.float64)
    fuse_norms(model)
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name != "lm_head"]
    seen = [inputs_of(model, names, part) for part in inputs.windows.split(inputs.at_once)]
    smooth(model, {name: torch.cat([part[name] for part in seen]) for name in names})
    samples = [
        torch.cat([part[f"model.layers.{i}.{site}"] for part in seen for site in ("self_attn.q_proj", "mlp.gate_proj")])
        for i in range(model.config.num_hidden_layers)
    ]
    rotation, losses = train(samples, inputs.start, inputs.batches)
    rotate(model, rotation)
    model.float()
    for name in names:
        linear = model.get_submodule(name)
        linear.weight.copy_(round_weights(linear.weight, inputs.largest))
        linear.register_forward_pre_hook(round_input)
    return Found(losses, rotation, perplexity(model, held_out))


def inputs_of(model: nn.Module, names: list[str], windows: Tensor) -> dict[str, Tensor]:
    """What the named linears read: [tokens, in]."""
    seen: dict[str, Tensor] = {}

    def watch(name: str) -> torch.utils.hooks.RemovableHandle:
        linear = model.get_submodule(name)
        return linear.register_forward_pre_hook(lambda _, x: seen.update({name: x[0].flatten(0, 1)}))

    hooks = [watch(name) for name in names]
    model(windows)
    for hook in hooks:
        hook.remove()
    return seen


def fuse_norms(model: nn.Module) -> None:
    """Move the gains of norms into the linears behind them."""
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        for norm, readers in (
            (layer.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
            (layer.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),
        ):
            for reader in readers:
                reader.weight *= norm.weight
            norm.weight.fill_(1)
    model.lm_head.weight *= model.model.norm.weight
    model.model.norm.weight.fill_(1)


def smooth(model: nn.Module, seen: dict[str, Tensor]) -> None:
    """α = ½ where a linear feeds the site: s = √(max|x| / max|w|), heads of a group together."""
    config = model.config
    heads, kv_heads, size = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    for index, layer in enumerate(model.model.layers):
        output, down = layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight
        x = seen[f"model.layers.{index}.self_attn.o_proj"].abs().amax(0)
        pair = [part.view(kv_heads, heads // kv_heads, size).amax(1) for part in (x, output.abs().amax(0))]
        scale = (pair[0] / pair[1]).sqrt()
        layer.self_attn.v_proj.weight /= scale.flatten()[:, None]
        output *= scale[:, None].expand(-1, heads // kv_heads, -1).flatten()
        scale = (seen[f"model.layers.{index}.mlp.down_proj"].abs().amax(0) / down.abs().amax(0)).sqrt()
        layer.mlp.up_proj.weight /= scale[:, None]
        down *= scale


def train(samples: list[Tensor], start: Tensor, batches: Iterator[Tensor]) -> tuple[Tensor, list[float]]:
    """One R1 for all layers, and the losses: the mean of their Whips, QR-Orth by SGD, a cosine as the schedule."""
    scaled = torch.stack([x / x.square().mean().sqrt() for x in samples])
    latent = start.clone().requires_grad_()
    optimizer = torch.optim.SGD([latent], lr=RATE, momentum=0.9)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    losses = []
    with torch.enable_grad():
        for _ in range(STEPS):
            y = scaled[:, next(batches)] @ orthogonal(latent)
            loss = torch.exp(-y.abs()).sum(-1).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_([latent], CLIP)
            optimizer.step()
            decay.step()
            losses.append(loss.item())
    return orthogonal(latent.detach()), losses


def orthogonal(latent: Tensor) -> Tensor:
    """Q of the QR factorisation whose R has a positive diagonal."""
    q, r = torch.linalg.qr(latent)
    return q * r.diagonal().sign()


def rotate(model: nn.Module, rotation: Tensor) -> None:
    """Merge R1 into what reads and what writes the residual stream."""
    model.model.embed_tokens.weight.copy_(model.model.embed_tokens.weight @ rotation)
    for name, linear in model.named_modules():
        if isinstance(linear, nn.Linear):
            writes = name.endswith(("o_proj", "down_proj"))
            linear.weight.copy_(rotation.T @ linear.weight if writes else linear.weight @ rotation)


def round_weights(weight: Tensor, largest: float) -> Tensor:
    """4 bits in groups, the last one short where they do not divide the row."""
    parts = []
    for group in weight.split(GROUP, dim=1):
        scale = group.abs().amax(1, keepdim=True) / largest
        parts.append((group / scale).round().clamp(-8, 7) * scale)
    return torch.cat(parts, dim=1)


def round_input(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """4 bits, each token's range and 0."""
    x = given[0]
    low, high = x.amin(-1, keepdim=True).clamp(max=0), x.amax(-1, keepdim=True).clamp(min=0)
    scale = (high - low) / 15
    zero = (-low / scale).round()
    return (((x / scale + zero).round().clamp(0, 15) - zero) * scale,)


def perplexity(model: nn.Module, windows: Tensor) -> float:
    """exp of the mean loss over windows without overlap."""
    return torch.stack([model(part, labels=part).loss for part in windows.split(8)]).mean().exp().item()
