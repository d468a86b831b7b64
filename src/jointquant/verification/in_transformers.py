"""transformers as a runtime: artifacts after ``import jointquant``, exports as it loads them by itself."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from jointquant.backend.devices import resolve_device, resolve_dtype
from jointquant.errors import InputError, fault_of_machine
from jointquant.fingerprint.probe import chat_of
from jointquant.fingerprint.variants import log_probabilities
from jointquant.models.configuration import read_config
from jointquant.models.options import DigestMode
from jointquant.runtime.artifact_facts import is_artifact
from jointquant.runtime.loading import load, load_tokenizer


class InTransformers:
    """A folder, loaded.

    Args:
        folder: an artifact or an export.
        dtype: that it computes in: ``float32``, ``bfloat16`` …, or ``auto``: float32 on the CPU, else the stored one.
        device: where it runs.
        digests: whether those of an artifact are checked.

    Raises:
        InputError: transformers refuses it.
    """

    name = "transformers"

    def __init__(self, folder: Path, dtype: str, device: str, digests: DigestMode) -> None:
        self.tokenizer = load_tokenizer(folder, digests)
        if is_artifact(folder):
            self.model = load(folder, dtype=dtype, device=device, digests=digests)
        else:
            self.model = loaded_export(folder, dtype, device)
        self.arithmetic = "float32" if self.model.dtype in (torch.float32, torch.float64) else "bfloat16"

    @torch.no_grad()
    def log_probabilities(self, tokens: list[int]) -> list[float]:
        """As ``Runtime``."""
        ids = torch.tensor(tokens, device=self.model.device)
        scores = self.model(input_ids=ids[None], use_cache=False).logits[0]
        return log_probabilities(scores, ids).tolist()

    def tokenize(self, text: str) -> list[int] | None:
        """As ``Runtime``."""
        return list(self.tokenizer(text).input_ids)

    def chat(self, question: str) -> str | None:
        """As ``Runtime``; of the fingerprint's question alone."""
        return chat_of(self.tokenizer)


def loaded_export(folder: Path, dtype: str, device: str) -> PreTrainedModel:
    """An export, as transformers loads it. Raises InputError when it refuses."""
    where = resolve_device(device)
    computed = resolve_dtype(dtype, where, getattr(read_config(folder), "dtype", None) or torch.float32)
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder, dtype=computed, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # a folder is data of others: transformers raises whatever it meets
        if fault_of_machine(error) is not None:
            raise
        raise InputError(f"transformers refuses {folder}: {' '.join(str(error).split())[:400]}") from None
    return model.to(where).eval()
