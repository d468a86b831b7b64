"""llama.cpp as a runtime, through llama-cpp-python's low-level functions."""

from __future__ import annotations

import ctypes
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from jointquant.errors import InputError, require
from jointquant.fingerprint.variants import log_probabilities

INSTALL = "pip install llama-cpp-python"

FLOATS = ("0", "1")
"""Types of files whose tensors are all in float32, or in float16."""


def library() -> Any:
    """llama-cpp-python, silent. Raises InputError where it is not installed."""
    try:
        import llama_cpp
    except ImportError as error:
        raise InputError(f"llama.cpp is not here ({error}): expected {INSTALL}") from None
    llama_cpp.llama_log_set(_silence(llama_cpp), ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    return llama_cpp


_SILENT: list[Any] = []
"""The callback that llama.cpp holds on to."""


def _silence(llama_cpp: Any) -> Any:
    if not _SILENT:
        _SILENT.append(llama_cpp.llama_log_callback(lambda level, text, data: None))
    return _SILENT[0]


class InLlamaCpp:
    """A GGUF file, loaded; the cache is in float32.

    Weights stay in the layout of the file: builds with AMX repack them, and crash on matrices as small as tests'.

    Args:
        file: GGUF.
        num_tokens: of the longest window.

    Raises:
        InputError: llama.cpp is not installed, or does not load the file.
    """

    name = "llama.cpp"

    def __init__(self, file: Path, num_tokens: int) -> None:
        self.llama = library()
        model = self.llama.llama_model_default_params()
        model.use_extra_bufts, model.use_mmap = False, False
        self.model = self.llama.llama_model_load_from_file(str(file).encode(), model)
        require(bool(self.model), f"llama.cpp does not load {file}: expected a GGUF file of a model that it knows")
        context = self.llama.llama_context_default_params()
        context.n_ctx = context.n_batch = context.n_ubatch = num_tokens
        context.n_threads = context.n_threads_batch = torch.get_num_threads()
        context.type_k = context.type_v = 0
        self.context = self.llama.llama_init_from_model(self.model, context)
        require(bool(self.context), f"llama.cpp makes no context of {num_tokens} tokens for {file}")
        self.vocabulary = self.llama.llama_model_get_vocab(self.model)
        plain = self._said("general.file_type") in FLOATS
        self.arithmetic = "bfloat16" if plain else "int8"  # inputs of quantized products, in groups of 32

    def __enter__(self) -> InLlamaCpp:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.llama.llama_free(self.context)
        self.llama.llama_model_free(self.model)

    def log_probabilities(self, tokens: list[int]) -> list[float]:
        """As ``Runtime``."""
        return log_probabilities(self.logits(tokens), torch.tensor(tokens)).tolist()

    def tokenize(self, text: str) -> list[int]:
        """Token ids, with the special tokens that the file says a text gets."""
        data = text.encode()
        ids = (self.llama.llama_token * (len(data) + 8))()
        count = self.llama.llama_tokenize(self.vocabulary, data, len(data), ids, len(ids), True, False)
        require(count >= 0, "llama.cpp does not tokenize the text")
        return list(ids[:count])

    def logits(self, ids: list[int]) -> Tensor:
        """[tokens, vocabulary] of one window, in float32."""
        llama = self.llama
        llama.llama_memory_clear(llama.llama_get_memory(self.context), True)
        batch = llama.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for position, token in enumerate(ids):
            batch.token[position], batch.pos[position], batch.logits[position] = token, position, 1
            batch.n_seq_id[position], batch.seq_id[position][0] = 1, 0
        failed = llama.llama_decode(self.context, batch)
        llama.llama_batch_free(batch)
        require(failed == 0, "llama.cpp fails to run the model")
        size = llama.llama_vocab_n_tokens(self.vocabulary)
        found = ctypes.string_at(llama.llama_get_logits(self.context), 4 * size * len(ids))
        return torch.frombuffer(bytearray(found), dtype=torch.float32).unflatten(0, (len(ids), size))

    def chat(self, question: str) -> str | None:
        """As ``Runtime``: by the template in the file."""
        from llama_cpp.llama_chat_format import Jinja2ChatFormatter

        template = self.llama.llama_model_chat_template(self.model, None)
        if not template:
            return ""
        write = Jinja2ChatFormatter(template.decode(), self._special("eos"), self._special("bos"))
        try:
            return str(write(messages=[{"role": "user", "content": question}]).prompt)
        except Exception:  # a template is a program of others: it raises whatever it likes, and refuses by that
            return ""

    def _said(self, key: str) -> str:
        """A value of the file's metadata; empty where it says none."""
        text = ctypes.create_string_buffer(64)
        found = self.llama.llama_model_meta_val_str(self.model, key.encode(), text, len(text))
        return text.value.decode() if found >= 0 else ""

    def _special(self, name: str) -> str:
        token = getattr(self.llama, f"llama_vocab_{name}")(self.vocabulary)
        text = self.llama.llama_vocab_get_text(self.vocabulary, token) if token >= 0 else b""
        return (text or b"").decode()
