"""The preset ``jointquant`` end to end, against a script of plain torch and transformers that does what it says.

    python benchmarks/jointquant_parity.py --out benchmarks/results/jointquant_parity.json

The embedded model, W4A4 in groups of 128, 16 windows of 128 tokens, perplexity on 8192 tokens. For each seed both sides
share the random start of R1 and the draw of windows; batches of the training are each side's own.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

import jointquant
import jointquant.demo
from jointquant.rotations.hadamard import random_hadamard
from jointquant.seeds import generator
from jointquant.text.windows import calibration_windows

DEMO = Path(jointquant.demo.__file__).parent
SEEDS = (0, 1, 2, 3)
WINDOWS, LENGTH, GROUP = 16, 128, 128
CALIBRATION, HELD_OUT = (DEMO / name for name in ("calibration.txt", "heldout.txt"))
EVALUATED = 8192


def windows_of(path: Path) -> Tensor:
    """All windows of a text: [windows, LENGTH]."""
    ids = AutoTokenizer.from_pretrained(DEMO / "model")(
        path.read_text(encoding="utf-8"), return_tensors="pt"
    ).input_ids[0]
    return ids[: len(ids) // LENGTH * LENGTH].view(-1, LENGTH)


def inputs_of(model: nn.Module, names: list[str], windows: Tensor) -> dict[str, Tensor]:
    """What the named linears read on some windows: [tokens, in]."""
    seen: dict[str, Tensor] = {}
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, x, name=name: seen.__setitem__(name, x[0].flatten(0, 1))
        )
        for name in names
    ]
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
    heads, kv_heads, size = (
        getattr(model.config, n) for n in ("num_attention_heads", "num_key_value_heads", "head_dim")
    )
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


def train(samples: list[Tensor], start: Tensor) -> Tensor:
    """One R1 for all layers: the mean of their Whips, QR-Orth by SGD, a rate of 5e-4 that decays as a cosine."""
    latent = start.clone().requires_grad_()
    optimizer = torch.optim.SGD([latent], lr=5e-4, momentum=0.9)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100)
    with torch.enable_grad():
        for _ in range(100):
            q, r = torch.linalg.qr(latent)
            rotation = q * r.diagonal().sign()
            each = [torch.exp(-(x[torch.randint(len(x), (512,))] @ rotation).abs()).sum(-1).mean() for x in samples]
            optimizer.zero_grad()
            torch.stack(each).mean().backward()
            torch.nn.utils.clip_grad_norm_([latent], 1.0)
            optimizer.step()
            decay.step()
    q, r = torch.linalg.qr(latent)
    return (q * r.diagonal().sign()).detach()


def rotate(model: nn.Module, rotation: Tensor) -> None:
    """Merge R1 into what reads and what writes the residual stream."""
    model.model.embed_tokens.weight.copy_(model.model.embed_tokens.weight @ rotation)
    for name, linear in model.named_modules():
        if isinstance(linear, nn.Linear):
            writes = name.endswith(("o_proj", "down_proj"))
            linear.weight.copy_(rotation.T @ linear.weight if writes else linear.weight @ rotation)


def round_weights(weight: Tensor) -> Tensor:
    """4 bits, groups of 128 with a short last one, the largest value at 7.5 steps."""
    parts = []
    for group in weight.split(GROUP, dim=1):
        scale = group.abs().amax(1, keepdim=True) / 7.5
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
    return torch.stack([model(part, labels=part).loss for part in windows.split(16)]).mean().exp().item()


@torch.no_grad()
def perplexity_by_hand(seed: int) -> tuple[float, float]:
    """Of the unquantized model, and of what the method makes of it."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(DEMO / "model", dtype=torch.float32)
    held_out, text = windows_of(HELD_OUT)[: EVALUATED // LENGTH], windows_of(CALIBRATION)
    exact = perplexity(model, held_out)
    fuse_norms(model)
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name != "lm_head"]
    seen = inputs_of(model, names, calibration_windows(text.flatten(), WINDOWS, LENGTH, seed, ""))
    smooth(model, seen)
    layers = [
        torch.cat([seen[f"model.layers.{i}.{site}"] for site in ("self_attn.q_proj", "mlp.gate_proj")])
        for i in range(model.config.num_hidden_layers)
    ]
    samples = [x / x.square().mean().sqrt() for x in layers]
    rotate(model, train(samples, random_hadamard(model.config.hidden_size, generator(seed, "r1")).float()))
    for name in names:
        linear = model.get_submodule(name)
        linear.weight.copy_(round_weights(linear.weight))
        linear.register_forward_pre_hook(round_input)
    return exact, perplexity(model, held_out)


def perplexity_of_the_preset(seed: int) -> float:
    """What ``quantize`` and ``evaluate`` make of it."""
    changes = ["weights.group_tail=pad", "weights.scale_dtype=float32", f"calibration.seed={seed}"]
    changes += [
        f"calibration.source={CALIBRATION}",
        f"calibration.num_samples={WINDOWS}",
        f"calibration.seqlen={LENGTH}",
    ]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "artifact"
        jointquant.quantize(DEMO / "model", out, jointquant.load_recipe("jointquant", changes), dtype="float32")
        found = jointquant.evaluate(out, (str(HELD_OUT),), seqlen=LENGTH, max_tokens=EVALUATED)
    return found.perplexity[str(HELD_OUT)]


def main() -> None:
    """Measure every seed on both sides, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    rows = []
    for seed in SEEDS:
        exact, script = perplexity_by_hand(seed)
        rows.append({"seed": seed, "unquantized": exact, "script": script, "preset": perplexity_of_the_preset(seed)})
        print(rows[-1], flush=True)
    means = {side: mean(row[side] for row in rows) for side in ("script", "preset")}
    result = {"rows": rows, "mean": means, "apart": means["preset"] / means["script"] - 1}
    print(result["mean"], f"apart {result['apart']:+.2%}")
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
