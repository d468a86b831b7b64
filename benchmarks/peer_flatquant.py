"""An own quantizer after FlatQuant's publication, for accuracy alone; runs in this package's own environment.

For benchmarks/real_model_peers.py. Written from the paper (Sun et al., "FlatQuant: Flatness Matters for LLM
Quantization", ICML 2025, arXiv:2410.09426), not from its code. As there: each linear's inputs are multiplied by an
invertible matrix that is learned, a Kronecker product of two small ones, behind a scaling of each channel; keys and
values get one of a head's size; thresholds of clipping are learned; each layer learns on its own, by the mean squared
error of its output, on the unquantized model's hidden states; weights are rounded to nearest, per channel and
symmetric, inputs per token and symmetric, keys and values per token and head with a zero point.

Unlike there: no kernel. The model computes in float32 with rounded numbers, and its transforms are carried out as they
stand, which is the same function. Windows have 256 tokens, not 2,048; ``--epochs`` and ``--rate`` may be others.

Own choices: the matrices start random and orthogonal; as U diag(s) Vᵀ their inverse is exact, and U and V are learned
by Cayley's transform. The scaling of channels starts by SmoothQuant's formula. A row of weights has one threshold, the
inputs of a site one, keys and values two each.

The last line it prints is JSON: seconds to load and quantize, those of the processor, peak memory above that of the
interpreter with its imports, perplexity, and each layer's loss in its first epoch and in its last. With ``--keep``
layers stay in a folder, with their seconds, and a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers
from flat_layer import OFF, Bits, FlatLayer
from peer_protocol import add_arguments, given_windows, peak_bytes, report
from torch import Tensor
from torch.nn.functional import mse_loss
from transformers import AutoModelForCausalLM, AutoTokenizer


@dataclass(frozen=True)
class Plan:
    """How a layer learns: AdamW, both rates falling as a cosine to 0."""

    epochs: int = 15
    batch: int = 4
    rate: float = 5e-3
    clipping_rate: float = 5e-2
    seed: int = 0


SCHEMES = {"w4a4kv4": Bits(), "w4a4kv16": Bits(cache=OFF)}


def start(layer: Any, flat: FlatLayer, hidden: Tensor, rope: tuple[Tensor, Tensor], batch: int) -> Tensor:
    """The unquantized layer's outputs [n, T, hidden]; scalings start by the largest inputs that are met on the way."""
    read = {"qkv": layer.self_attn.q_proj, "gate_up": layer.mlp.gate_proj, "down": layer.mlp.down_proj}
    largest: dict[str, Tensor] = {}

    def noting(name: str) -> Callable[..., None]:
        def note(_: Any, inputs: tuple[Tensor, ...]) -> None:
            found = inputs[0].abs().flatten(0, -2).amax(0)
            largest[name] = torch.maximum(largest[name], found) if name in largest else found

        return note

    handles = [module.register_forward_pre_hook(noting(name)) for name, module in read.items()]
    with torch.no_grad():
        outputs = torch.cat([layer(rows, position_embeddings=rope) for rows in hidden.split(batch)])
    for handle in handles:
        handle.remove()
    weights = {**flat.weights, "qkv": torch.cat([flat.weights["qk"], flat.weights["v"]])}
    for name, inputs in largest.items():
        getattr(flat, name).smooth(inputs, weights[name])
    return outputs


def train(flat: FlatLayer, hidden: Tensor, outputs: Tensor, rope: tuple[Tensor, Tensor], plan: Plan) -> list[float]:
    """Learn what turns ``hidden`` into ``outputs`` [n, T, hidden]; the mean squared error of each epoch.

    Products with weights are in bfloat16 here, and nowhere else. Raises RuntimeError if the error is no number.
    """
    named = [(name, value) for name, value in flat.named_parameters() if value.requires_grad]
    clipping = [value for name, value in named if "threshold" in name]
    others = [value for name, value in named if "threshold" not in name]
    groups = [{"params": others, "lr": plan.rate}, {"params": clipping, "lr": plan.clipping_rate}]
    optimizer = torch.optim.AdamW(groups)
    steps = plan.epochs * -(-len(hidden) // plan.batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    rng, losses = torch.Generator().manual_seed(plan.seed), []
    flat.precision = torch.bfloat16
    for _ in range(plan.epochs):
        total = 0.0
        for rows in torch.randperm(len(hidden), generator=rng).split(plan.batch):
            loss = mse_loss(flat(hidden[rows], rope), outputs[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(rows)
        losses.append(total / len(hidden))
        if losses[-1] != losses[-1]:
            raise RuntimeError(f"the loss is no number in epoch {len(losses)}: take a smaller learning rate")
    return losses


def quantize(model: Any, windows: Tensor, bits: Bits, plan: Plan, keep: Path | None = None) -> list[dict[str, Any]]:
    """Quantize a model's layers in place, calibrated on ``windows`` [n, T]; of each, its losses and its seconds.

    With ``keep`` each layer's parameters stay in that folder, and those that are there are taken. Raises ValueError
    where these were learned by other settings.
    """
    layers, report, settings = model.model.layers, [], {**asdict(bits), **asdict(plan)}
    with torch.no_grad():
        hidden = model.model.embed_tokens(windows)
        rope = model.model.rotary_emb(hidden, position_ids=torch.arange(windows.shape[1])[None])
    for index, layer in enumerate(layers):
        begun, worked = time.perf_counter(), time.process_time()
        flat = FlatLayer(layer, bits, torch.Generator().manual_seed(plan.seed + index))
        file = None if keep is None else keep / f"{index}.pt"
        outputs = start(layer, flat, hidden, rope, plan.batch)
        if file is not None and file.is_file():
            row = torch.load(file)
            if (made := row.pop("settings")) != settings:
                raise ValueError(f"{file} was made with {made}, not with {settings}: name another folder")
            flat.load_state_dict(row.pop("state"))
        else:
            losses = train(flat, hidden, outputs, rope, plan)
            spent = {"seconds": time.perf_counter() - begun, "processor_seconds": time.process_time() - worked}
            row = {"losses": losses, **spent}
            if file is not None:
                torch.save(
                    {**row, "state": flat.state_dict(), "settings": settings}, partial := file.with_suffix(".tmp")
                )
                partial.rename(file)  # a whole file or none, whenever the run is stopped
        flat.freeze()
        layers[index], hidden = flat, outputs
        report.append(row)
        print(index, row, flush=True)
    return report


def main() -> None:
    """Quantize, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--scheme", choices=SCHEMES, default="w4a4kv4")
    parser.add_argument("--epochs", type=int, default=Plan.epochs)
    parser.add_argument(
        "--rate", type=float, default=Plan.rate, help="of transforms; that of thresholds is 10 times it"
    )
    parser.add_argument("--keep", type=Path, help="a folder for the layers of this very run")
    arguments = parser.parse_args()
    before, begun, worked = peak_bytes(), time.perf_counter(), time.process_time()
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
    rows, test = given_windows(arguments, AutoTokenizer.from_pretrained(arguments.model))
    loading = {"seconds": time.perf_counter() - begun, "processor_seconds": time.process_time() - worked}
    plan = Plan(arguments.epochs, rate=arguments.rate, clipping_rate=10 * arguments.rate)
    layers = quantize(model, rows, SCHEMES[arguments.scheme], plan, arguments.keep)
    result: dict[str, Any] = {
        **{name: sum(row[name] for row in [loading, *layers]) for name in loading},
        "peak_bytes": peak_bytes() - before,
        "losses": [[row["losses"][0], row["losses"][-1]] for row in layers],
        "versions": {name.__name__: name.__version__ for name in (torch, transformers)},
    }
    report(arguments, model, test, result)


if __name__ == "__main__":
    main()
