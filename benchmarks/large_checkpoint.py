"""Generate a Llama checkpoint of random weights, a shard a layer, without ever holding it.

python benchmarks/large_checkpoint.py FOLDER --layers 32
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from accelerate import init_empty_weights
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

import jointquant.demo
from jointquant.runtime.loading import load_tokenizer

VOCABULARY = 32_000
SHAPE = {"hidden_size": 2048, "intermediate_size": 5632, "num_attention_heads": 16, "num_key_value_heads": 4}


def main() -> None:
    """Write one checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=8)
    arguments = parser.parse_args()
    generate(arguments.folder, arguments.layers)


def generate(folder: Path, layers: int, **shape: int) -> None:
    """Random weights of the scale that training starts from, in bfloat16; other sizes than ``SHAPE`` by keyword."""
    folder.mkdir(parents=True)
    config = LlamaConfig(
        **(SHAPE | {"vocab_size": VOCABULARY} | shape), num_hidden_layers=layers, max_position_embeddings=2048
    )
    config.architectures, config.dtype = ["LlamaForCausalLM"], "bfloat16"
    config.save_pretrained(folder)
    load_tokenizer(Path(jointquant.demo.__file__).parent / "model").save_pretrained(folder)
    with init_empty_weights():
        shapes = {name: tensor.shape for name, tensor in LlamaForCausalLM(config).state_dict().items()}
    groups: dict[str, list[str]] = {}
    for name in shapes:
        groups.setdefault(name.split(".")[2] if ".layers." in name else name.split(".")[-2], []).append(name)
    generator, index = torch.Generator().manual_seed(0), {}
    for group, names in groups.items():
        tensors = {}
        for name in names:
            noise = torch.randn(shapes[name], generator=generator)
            tensors[name] = (1 + 0.1 * noise if name.endswith("norm.weight") else 0.02 * noise).bfloat16()
        file = f"model-{group}.safetensors"
        save_file(tensors, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


if __name__ == "__main__":
    main()
