"""Loading a model or an artifact to run it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from transformers import (
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from typing_extensions import Unpack

from jointquant.backend.devices import resolve_device, resolve_dtype
from jointquant.errors import InputError, fault_of_machine, printable, require
from jointquant.files.durable import room_needed
from jointquant.hub import locate
from jointquant.models.configuration import blamed, opener_of, read_config
from jointquant.models.options import DigestMode, ModelOptions, completed, digests_named
from jointquant.models.source import check_finite
from jointquant.models.stream import open_stream
from jointquant.runtime.artifact_digests import handed_over, open_digests
from jointquant.runtime.artifact_facts import is_artifact
from jointquant.runtime.cache import CACHE, PackedCache, cache_paths
from jointquant.runtime.generation_settings import generation_settings_of
from jointquant.runtime.integration import check_artifact
from jointquant.runtime.kernels.choices import use_kernels
from jointquant.runtime.kernels.selection import default_mode, mode_named
from jointquant.trust.folder import check_folder, tokenizer_code
from jointquant.trust.tokenizer_growth import check_growth

# Spaces, case, numbers, punctuation, scripts and line ends: what tokenizers treat differently.
PROBE = "Hello world,  don't\tsplit 12345.67 naïve 東京 — “quoted” (x_y) != z\n\n    return   None\r\n"


def load(model: str | Path, *, kernels: str | None = None, **options: Unpack[ModelOptions]) -> PreTrainedModel:
    """A model folder, a hub id or an artifact, ready to run.

    Args:
        model: the folder or the id.
        kernels: for the quantized linears: ``auto``, ``repacked``, which keeps second forms of weights,
            ``integers``, ``dense`` or ``reference``; None: what the environment variable ``JOINTQUANT_KERNELS`` says,
            else ``auto``.
        **options: ``revision``, ``hub``, ``device``, ``dtype``, ``allow_pickle``, ``digests``, as for ``quantize``.

    Raises:
        InputError: no such model, an unknown architecture, tensors that are missing or broken, an artifact that is not
            what was written, or unknown kernels.
    """
    mode = default_mode() if kernels is None else mode_named(kernels)
    given = completed(options)
    folder = locate(model, given["revision"], given["hub"]).folder
    config = read_config(folder)
    generation_settings_of(folder)  # transformers reads them too, and stumbles over what is none
    where = resolve_device(given["device"])
    digests = None
    if is_artifact(folder):
        digests = check_artifact(folder, config, digests_named(given["digests"]))
        stored = config.dtype
    else:
        stored = open_stream(folder, allow_pickle=given["allow_pickle"]).stored_dtype
    computed = resolve_dtype(given["dtype"], where, stored)
    with blamed(f"{folder} cannot be loaded"), handed_over(digests):
        loaded: PreTrainedModel = opener_of(config.model_type).from_pretrained(
            folder, dtype=computed, local_files_only=True, trust_remote_code=False
        )
    for name, tensor in loaded.state_dict().items():
        check_finite(name, tensor)
    use_kernels(loaded, mode)
    loaded = loaded.to(where).eval()
    with blamed(f"{folder} cannot run as its configuration says"), torch.no_grad():
        cache = PackedCache(loaded) if any(cache_paths(loaded)) else None  # as ``generate`` runs it
        loaded(input_ids=torch.zeros(1, 1, dtype=torch.long, device=where), **{CACHE: cache})
    return loaded


def load_tokenizer(model: str | Path | PreTrainedModel, digests: DigestMode | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder; no code in the folder is run.

    Args:
        model: the folder.
        digests: whether those of an artifact are checked, as in ``ModelOptions``.

    Raises:
        InputError: there is none, or an artifact's is not what was written.
    """
    require(not isinstance(model, PreTrainedModel), "a model in memory needs its tokenizer: pass tokenizer=")
    folder = Path(str(model))
    require(folder.is_dir(), f"no such model: {model} (expected a folder with config.json and safetensors)")
    check_folder(folder)
    if is_artifact(folder):
        open_digests(folder, digests_named(digests))
    check_growth(folder)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        tokenizer(PROBE)
    except Exception as error:  # a tokenizer is data of others: its library raises whatever it meets
        if fault_of_machine(error) is not None:
            raise
        require(
            not tokenizer_code(folder),
            f"the tokenizer in {folder} needs code of the model folder (auto_map), which is never run: "
            "expected one that tokenizer.json describes",
        )
        alone = (folder / "tokenizer.model").is_file() and not (folder / "tokenizer.json").is_file()
        require(
            not alone or importlib.util.find_spec("sentencepiece") is not None,
            f"the tokenizer in {folder} is tokenizer.model alone, which sentencepiece reads: expected tokenizer.json "
            "beside it, or pip install sentencepiece protobuf",
        )
        reason = printable(str(error), 200)
        raise InputError(f"no tokenizer in {model}: expected tokenizer.json ({reason})") from None
    return tokenizer


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save a tokenizer so that it loads again as what it is.

    Which class transformers picks depends on the model type, which an artifact changes; so the tokenizer is saved as
    it was resolved, not as its files stood in the model's folder, and what loads again is compared.

    Raises:
        InputError: the saved tokenizer encodes differently.
        ResumableError: the disk is full.
    """
    with room_needed(folder / "tokenizer.json", 0):
        tokenizer.save_pretrained(folder)
    again = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    require(
        again(PROBE).input_ids == tokenizer(PROBE).input_ids,
        f"the tokenizer {type(tokenizer).__name__} encodes differently once saved: expected a fast tokenizer",
    )
