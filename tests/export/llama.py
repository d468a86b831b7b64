"""The real llama.cpp: perplexities, and its own quantizer."""

from __future__ import annotations

import ctypes
import math
from pathlib import Path

import torch
from torch import Tensor

from jointquant.verification.in_llama_cpp import InLlamaCpp, library

F16 = 1  # of ggml's types
Q4_0_FILE = 2  # of llama.cpp's file types


class Llama(InLlamaCpp):
    """A GGUF file, loaded."""

    def perplexity(self, windows: Tensor) -> float:
        """Of windows [n, T], T − 1 predictions each."""
        losses = [
            torch.nn.functional.cross_entropy(self.logits(w.tolist())[:-1].double(), w[1:]).item() for w in windows
        ]
        return math.exp(sum(losses) / len(losses))


def quantize_file(source: Path, out: Path, keep_ends: bool) -> None:
    """llama.cpp's own Q4_0 of a file; ``keep_ends`` leaves embedding and head in float16, as our export does."""
    llama_cpp = library()
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread = Q4_0_FILE, 1
    if keep_ends:
        parameters.output_tensor_type = parameters.token_embedding_type = F16
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(parameters)) == 0
