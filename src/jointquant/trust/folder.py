"""A model folder as a whole: nothing in it leads out, hangs, or is of an absurd size."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

from jointquant.errors import require
from jointquant.trust.files import check_entries
from jointquant.trust.shard_index import SAFETENSORS
from jointquant.trust.strict_json import read_object

CONFIG_NAME, GENERATION_NAME, TOKENIZER_CONFIG_NAME = "config.json", "generation_config.json", "tokenizer_config.json"
DIGESTS_NAME = "digests.json"
"""Of an artifact: what its files and tensors were when they were written."""
FINGERPRINT_NAME = "fingerprint.json"
"""Of an artifact or an export: what it is to predict (``jointquant.fingerprint``)."""

OBJECTS = (CONFIG_NAME, GENERATION_NAME, TOKENIZER_CONFIG_NAME)
"""Files that must hold a JSON object of moderate size."""

LARGEST_SMALL_FILE = 1 << 28
"""Bytes of a vocabulary, merges or a template: the largest known tokenizer.json has an eighth of it."""

PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")
"""How images and videos become numbers."""

# What a model needs besides its weights, at the top of its folder.
SMALL_FILES = (
    CONFIG_NAME,
    GENERATION_NAME,
    DIGESTS_NAME,
    FINGERPRINT_NAME,
    SAFETENSORS.index,
    "tokenizer*.json",
    "tokenizer*.model",
    "*.tiktoken",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "spiece.model",
    "chat_template.*",
    *PROCESSOR_FILES,
)


def small_files(names: Iterable[str]) -> list[str]:
    """Of the files of a model, those it needs besides its weights."""
    top = sorted(name for name in names if "/" not in name)
    return [name for name in top if any(fnmatch(name, pattern) for pattern in SMALL_FILES)]


def check_folder(folder: Path) -> None:
    """Refuse a model folder before a library reads it.

    Raises:
        InputError: links that lead out, pipes and devices, small files that are large, JSON that is none.
    """
    check_entries(folder)
    for name in OBJECTS:
        if (folder / name).exists():
            read_object(folder / name)
    for name in small_files(entry.name for entry in folder.iterdir()):
        path = folder / name
        if path.is_file():
            size = path.stat().st_size
            require(size <= LARGEST_SMALL_FILE, f"{path} has {size} bytes: expected at most {LARGEST_SMALL_FILE}")


def tokenizer_code(folder: Path) -> bool:
    """Whether a folder's tokenizer names code of its own (``auto_map``)."""
    path = folder / TOKENIZER_CONFIG_NAME
    named = read_object(path).get("auto_map") if path.exists() else None
    return isinstance(named, dict) and "AutoTokenizer" in named
