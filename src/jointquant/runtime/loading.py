"""Loading a model or an artifact to run it."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from jointquant.devices import resolve_device, resolve_dtype
from jointquant.errors import InputError, require
from jointquant.models.source import Checkpoint
from jointquant.models.stream import open_stream, read_config
from jointquant.runtime.integration import is_artifact


def load(model: str | Path, *, device: str = "auto", dtype: str = "auto") -> PreTrainedModel:
    """A model folder or an artifact, ready to run.

    Raises:
        InputError: no such model, an unknown architecture, or tensors that are missing or broken.
    """
    folder = Path(model)
    config = read_config(folder)
    where = resolve_device(device)
    if is_artifact(folder):
        stored = config.dtype
        Checkpoint(folder)
    else:
        stored = open_stream(folder).stored_dtype
    loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder, dtype=resolve_dtype(dtype, where, stored), local_files_only=True
    )
    return loaded.to(where).eval()  # type: ignore[arg-type]


def load_tokenizer(model: str | Path | PreTrainedModel) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder. Raises InputError when there is none."""
    require(not isinstance(model, PreTrainedModel), "a model in memory needs its tokenizer: pass tokenizer=")
    require(Path(str(model)).is_dir(), f"no such model: {model} (expected a folder with config.json and safetensors)")
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(model, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"no tokenizer in {model}: expected tokenizer.json ({reason})") from None
    return tokenizer
