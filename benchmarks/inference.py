"""Prefill and decode of artifacts against bfloat16 transformers, side by side in one process.

    python benchmarks/inference.py [--shapes Llama-3.2-1B,SmolLM2-135M] [--layers 0] [--repetitions 5]
        [--artifacts W4A16,W4A8] [--prefill 512] [--out FILE]

The models have random weights and some layers of real shapes, with as many words as give the head the part of the
weights that it has in the whole model: a fifth in Llama 3.2 1B (16 layers, 128,256 words), a sixteenth in TinyLlama
1.1B (22 layers, 32,000 words). Rounding is to nearest: what the integers are does not matter here. Ratios are medians
over repetitions of bfloat16's (and float32's) time by the artifact's, run one after the other. Freed memory is kept
for the next tensors (``memory.keep_freed_memory``): whether the C library would return it, and a model wait for new
pages, hangs on what was allocated before. Writes benchmarks/results/inference.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, PreTrainedModel

import jointquant
from jointquant.backend.devices import device_name, resolve_device, synchronize
from jointquant.backend.memory import keep_freed_memory
from jointquant.demo.story import CALIBRATION_TEXT, MODEL
from jointquant.quantization.integer import IntFormat
from jointquant.quantization.ranges import DynamicRange
from jointquant.runtime.attention import CachePath
from jointquant.runtime.cache import PackedCache, PackedLayer, cache_paths
from jointquant.runtime.kernels.choices import packed_linears, second_form_bytes
from jointquant.runtime.loading import load_tokenizer

RESULT = Path(__file__).parent / "results" / "inference.json"
PROMPT, STEPS = 64, 16
HEAD = "head.num_bits=4"
R4 = "rotations.r4.kind=hadamard"
LEARNED_R4 = ("rotations.r4.kind=learned", "rotations.r4.steps=1")
"""One step: what is learned does not change what it costs."""
FOUR_BITS = ("activations.num_bits=4", "kv_cache.num_bits=4", R4, "rotations.r3.kind=hadamard")
ARTIFACTS: dict[str, tuple[str, ...]] = {
    "W4A16": (),
    "W4A16, head W4": (HEAD,),
    "W4A8": ("activations.num_bits=8",),
    "W4A8, head W4": ("activations.num_bits=8", HEAD),
    "W4A4": ("activations.num_bits=4",),
    "W4A4 with R4": ("activations.num_bits=4", R4),
    "W4A4 with R4, head W4": ("activations.num_bits=4", R4, HEAD),
    "W4A4 with learned R4": ("activations.num_bits=4", *LEARNED_R4),
    "W4A4KV4 with R3, R4": FOUR_BITS,
    "W4A4KV4 with R3, R4, head W4": (*FOUR_BITS, HEAD),
}
Row = dict[str, Any]


@dataclass(frozen=True)
class Shape:
    """A real model's sizes, under the names of its configuration."""

    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    num_hidden_layers: int
    vocab_size: int

    def with_layers(self, layers: int) -> dict[str, int]:
        """The sizes of a model of some of its layers, whose head has the same part of the weights."""
        words = self.vocab_size * layers // self.num_hidden_layers // WORDS_MULTIPLE * WORDS_MULTIPLE
        return asdict(self) | {"num_hidden_layers": layers, "vocab_size": max(words, WORDS)}


SHAPES = {
    "Llama-3.2-1B": Shape(2048, 8192, 32, 8, 16, 128256),
    "TinyLlama-1.1B": Shape(2048, 5632, 32, 4, 22, 32000),
    "Llama-2-7B": Shape(4096, 11008, 32, 32, 32, 32000),
    "SmolLM2-135M": Shape(576, 1536, 9, 3, 30, 49152),
}
WORDS, WORDS_MULTIPLE = 2048, 128
"""The embedded tokenizer's, whose ids must exist."""


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="Llama-3.2-1B,TinyLlama-1.1B", help=f"some of {', '.join(SHAPES)}")
    parser.add_argument("--layers", type=int, default=4, help="0: all of the model's")
    parser.add_argument("--repetitions", type=int, default=5)
    every = ";".join(ARTIFACTS)
    parser.add_argument("--artifacts", default=every, help=f"some, between semicolons, of {every}")
    parser.add_argument("--prefill", type=int, default=512, help="tokens of the prompt whose time is measured")
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    device, rows = resolve_device("auto"), list[Row]()
    result = described(arguments, device) | {"rows": rows}
    result["cache"] = [cache_bytes(head_dim) for head_dim in (64, 80, 96, 128)]
    for shape in arguments.shapes.split(","):
        base = generated(SHAPES[shape], arguments.layers or SHAPES[shape].num_hidden_layers, device)
        wide = copy.deepcopy(base).float()
        with tempfile.TemporaryDirectory() as folder:
            for name in arguments.artifacts.split(";"):
                artifact = artifact_of(base, Path(folder) / "a", ARTIFACTS[name])
                keep_freed_memory()
                found = compared((base, wide), artifact, arguments.repetitions, arguments.prefill)
                rows.append({"shape": shape, "artifact": name, **found})
                print(json.dumps(rows[-1]), flush=True)
                arguments.out.write_text(json.dumps(result, indent=2) + "\n")
                del artifact


def described(arguments: argparse.Namespace, device: torch.device) -> Row:
    """What is measured, with what, and where."""
    given = [f"--shapes {arguments.shapes} --layers {arguments.layers} --repetitions {arguments.repetitions}"]
    if arguments.artifacts != ";".join(ARTIFACTS):
        given.append(f"--artifacts '{arguments.artifacts}'")
    if arguments.prefill != 512:
        given.append(f"--prefill {arguments.prefill}")
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    return {
        "command": f"python benchmarks/inference.py {' '.join(given)}",
        "date": date.today().isoformat(),
        "commit": commit(),
        "machine": f"{device_name(device)}, {torch.get_num_threads()} threads",
        "load_average": os.getloadavg(),
        "versions": versions | {"python": platform.python_version()},
        "layers": arguments.layers,
        "prompt": PROMPT,
        "prefill": arguments.prefill,
        "repetitions": arguments.repetitions,
    }


def generated(shape: Shape, layers: int, device: torch.device) -> PreTrainedModel:
    """A model of some layers with random weights in bfloat16, made where it runs."""
    config = LlamaConfig(**shape.with_layers(layers), max_position_embeddings=4096, tie_word_embeddings=False)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with device:
        model = LlamaForCausalLM(config).eval()
    torch.set_default_dtype(torch.float32)
    return model


def artifact_of(base: PreTrainedModel, folder: Path, changes: tuple[str, ...]) -> PreTrainedModel:
    """``base``, quantized and loaded."""
    calibration = [f"calibration.source={CALIBRATION_TEXT}", "calibration.num_samples=1", "calibration.seqlen=8"]
    plain = ["weights.num_bits=4", "weights.method=rtn", "weights.clip=none", "head.method=rtn", "head.clip=none"]
    recipe = jointquant.load_recipe("fp16", [*plain, *calibration, *changes])
    jointquant.quantize(base, folder, recipe, tokenizer=load_tokenizer(MODEL), dtype="bfloat16", overwrite=True)
    return jointquant.load(folder, dtype="bfloat16")


def compared(
    bases: tuple[PreTrainedModel, PreTrainedModel], artifact: PreTrainedModel, repetitions: int, prompt: int
) -> Row:
    """Ratios to the model in bfloat16 and in float32, tokens per second, and bytes."""
    row: Row = {}
    base, wide = bases
    for name, measure, tokens in (("decode", decode, STEPS), ("prefill", partial(prefill, tokens=prompt), prompt)):
        for model in (base, wide, artifact):
            measure(model)
        times = [(measure(base), measure(wide), measure(artifact)) for _ in range(repetitions)]
        ratios = [theirs / ours for theirs, _, ours in times]
        row[f"{name}_ratio"] = statistics.median(ratios)
        row[f"{name}_ratio_min"], row[f"{name}_ratio_max"] = min(ratios), max(ratios)
        row[f"{name}_ratio_float32"] = statistics.median(theirs / ours for _, theirs, ours in times)
        row[f"{name}_tokens_per_second"] = tokens / statistics.median(ours for _, _, ours in times)
        row[f"{name}_tokens_per_second_bf16"] = tokens / statistics.median(theirs for theirs, _, _ in times)
    row["weight_bytes_ratio"] = resident_bytes(artifact) / resident_bytes(base)
    row["kernels"] = sorted({kernel for _, linear in packed_linears(artifact) for kernel in linear.kernels_used()})
    return row


def timed(model: PreTrainedModel, run: Callable[[], object]) -> float:
    """Seconds."""
    synchronize(model.device)
    start = time.perf_counter()
    run()
    synchronize(model.device)
    return time.perf_counter() - start


@torch.inference_mode()
def decode(model: PreTrainedModel) -> float:
    """Seconds for ``STEPS`` tokens one by one, batch 1, behind a prompt."""
    ids = torch.arange(PROMPT + STEPS, device=model.device)[None] * 37 % WORDS
    cache = PackedCache(model) if any(cache_paths(model)) else DynamicCache(config=model.config)
    model(ids[:, :PROMPT], past_key_values=cache, logits_to_keep=1)

    def steps() -> None:
        for position in range(PROMPT, PROMPT + STEPS):
            model(ids[:, position : position + 1], past_key_values=cache)

    return timed(model, steps)


@torch.inference_mode()
def prefill(model: PreTrainedModel, tokens: int) -> float:
    """Seconds for a prompt, batch 1."""
    ids = torch.arange(tokens, device=model.device)[None] * 37 % WORDS
    return timed(model, lambda: model(ids, use_cache=False, logits_to_keep=1))


def resident_bytes(model: PreTrainedModel) -> int:
    """Bytes of all tensors that a model holds once it has run, what kernels keep included."""
    stored = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    return stored + second_form_bytes(model)


def cache_bytes(head_dim: int) -> Row:
    """Bytes of a 4-bit cache's layer by those of transformers' in bfloat16, of 1,000 tokens."""
    quantizer = DynamicRange(IntFormat(4, symmetric=False))
    layer = PackedLayer(CachePath(key=quantizer, value=quantizer), {})
    states = torch.randn(1, 8, 1000, head_dim, dtype=torch.bfloat16)
    layer.update(states, states)
    return {"head_dim": head_dim, "ratio": (layer.keys.nbytes + layer.values.nbytes) / (2 * states.nbytes)}


def commit() -> str:
    """Of the checkout, with a mark where files differ from it."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    main()
