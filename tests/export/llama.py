"""The real llama.cpp, through llama-cpp-python's low-level functions."""

from __future__ import annotations

import ctypes
import math
from pathlib import Path
from types import TracebackType

import llama_cpp
import torch
from torch import Tensor

F16 = 1  # of ggml's types
Q4_0_FILE = 2  # of llama.cpp's file types


@llama_cpp.llama_log_callback
def _say_nothing(level: int, text: bytes, data: ctypes.c_void_p) -> None:
    pass


llama_cpp.llama_log_set(_say_nothing, ctypes.c_void_p(0))
llama_cpp.llama_backend_init()


class Llama:
    """A GGUF file, loaded; the cache is in float32.

    Weights stay in the layout of the file: builds with AMX repack them, and crash on matrices as small as these.
    """

    def __init__(self, file: Path, num_tokens: int) -> None:
        model = llama_cpp.llama_model_default_params()
        model.use_extra_bufts, model.use_mmap = False, False
        self.model = llama_cpp.llama_model_load_from_file(str(file).encode(), model)
        assert self.model, f"llama.cpp does not load {file}"
        context = llama_cpp.llama_context_default_params()
        context.n_ctx = context.n_batch = context.n_ubatch = num_tokens
        context.n_threads = context.n_threads_batch = 1
        context.type_k = context.type_v = 0
        self.context = llama_cpp.llama_init_from_model(self.model, context)
        assert self.context
        self.vocabulary = llama_cpp.llama_model_get_vocab(self.model)

    def __enter__(self) -> Llama:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        llama_cpp.llama_free(self.context)
        llama_cpp.llama_model_free(self.model)

    def tokenize(self, text: str) -> list[int]:
        """Token ids, with the special tokens that the file says a text gets."""
        data = text.encode()
        ids = (llama_cpp.llama_token * (len(data) + 8))()
        count = llama_cpp.llama_tokenize(self.vocabulary, data, len(data), ids, len(ids), True, False)
        assert count >= 0
        return list(ids[:count])

    def logits(self, ids: list[int]) -> Tensor:
        """[tokens, vocabulary] of one window."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for position, token in enumerate(ids):
            batch.token[position], batch.pos[position], batch.logits[position] = token, position, 1
            batch.n_seq_id[position], batch.seq_id[position][0] = 1, 0
        assert llama_cpp.llama_decode(self.context, batch) == 0
        size = llama_cpp.llama_vocab_n_tokens(self.vocabulary)
        found = llama_cpp.llama_get_logits(self.context)
        values = torch.frombuffer(
            bytearray(ctypes.string_at(found, 4 * size * len(ids))), dtype=torch.float32
        ).unflatten(0, (len(ids), size))
        llama_cpp.llama_batch_free(batch)
        return values

    def perplexity(self, windows: Tensor) -> float:
        """Of windows [n, T], T − 1 predictions each."""
        losses = [
            torch.nn.functional.cross_entropy(self.logits(w.tolist())[:-1].double(), w[1:]).item() for w in windows
        ]
        return math.exp(sum(losses) / len(losses))


def quantize_file(source: Path, out: Path, keep_ends: bool) -> None:
    """llama.cpp's own Q4_0 of a file; ``keep_ends`` leaves embedding and head in float16, as our export does."""
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread = Q4_0_FILE, 1
    if keep_ends:
        parameters.output_tensor_type = parameters.token_embedding_type = F16
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(parameters)) == 0
