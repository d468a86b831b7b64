"""Loading a model or an artifact to run it."""

from __future__ import annotations

from pathlib import Path

from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from jointquant.devices import resolve_device, resolve_dtype
from jointquant.errors import InputError, require
from jointquant.hub import locate
from jointquant.models.source import Checkpoint
from jointquant.models.stream import open_stream, read_config
from jointquant.runtime.integration import is_artifact

# Spaces, case, numbers, punctuation, scripts and line ends: what tokenizers treat differently.
PROBE = "Hello world,  don't\tsplit 12345.67 naïve 東京 — “quoted” (x_y) != z\n\n    return   None\r\n"


def load(
    model: str | Path, *, revision: str | None = None, hub: str = "hf", device: str = "auto", dtype: str = "auto"
) -> PreTrainedModel:
    """A model folder, a hub id or an artifact, ready to run.

    Raises:
        InputError: no such model, an unknown architecture, or tensors that are missing or broken.
    """
    folder = locate(model, revision, hub).folder
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
    return loaded.to(where).eval()


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


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save a tokenizer so that it loads again as what it is.

    Which class transformers picks depends on the model type, which an artifact changes; so the tokenizer is saved as
    it was resolved, not as its files stood in the model's folder, and what loads again is compared.

    Raises:
        InputError: the saved tokenizer encodes differently.
    """
    tokenizer.save_pretrained(folder)
    again = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    require(
        again(PROBE).input_ids == tokenizer(PROBE).input_ids,
        f"the tokenizer {type(tokenizer).__name__} encodes differently once saved: expected a fast tokenizer",
    )


def generation_config_of(model: str | Path | PreTrainedModel) -> GenerationConfig | None:
    """The generation settings of a model folder, if it has any, or of a model in memory."""
    if isinstance(model, PreTrainedModel):
        return model.generation_config
    if not (Path(model) / "generation_config.json").is_file():
        return None
    return GenerationConfig.from_pretrained(model, local_files_only=True)
