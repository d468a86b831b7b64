"""Attention of one new token over a packed cache on NVIDIA GPUs (Triton); the programs are in ``triton_attention``."""

from __future__ import annotations

import torch
from torch import Tensor

from jointquant.backend.devices import has_triton, is_nvidia
from jointquant.backend.launches import of_launch, reason
from jointquant.quantization.ranges import DynamicRange
from jointquant.runtime.kernels.attention_interface import AttentionProblem
from jointquant.runtime.per_token_head import CacheRange

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
WORD = 4
"""Bytes that records are multiples of where programs read them: whole words, scales among them."""
LARGEST_HEAD = 512


def record_multiple(device: torch.device) -> int:
    """What the bytes of a record are a multiple of on a device."""
    return WORD if is_nvidia(device) and has_triton() else 1


class AttentionTriton:
    """Keys and values of at most 8 bits with one scale a vector, read where they lie."""

    name = "attention_triton"

    def refusal(self, problem: AttentionProblem) -> str | None:
        """By device, and as ``refusal_of_formats``."""
        if not is_nvidia(problem.device):
            return "runs on NVIDIA GPUs"
        if not has_triton():
            return "needs Triton: pip install triton"
        return self.refusal_of_formats(problem) or self.refusal_of_memory(problem) or reason(self.name, problem)

    def refusal_of_formats(self, problem: AttentionProblem) -> str | None:
        """By quantizers, length and dtype."""
        if problem.dtype not in DTYPES:
            return f"results of 32 bits at most, not {problem.dtype}"
        if problem.head_dim % 2 or problem.head_dim > LARGEST_HEAD:
            return f"vectors of an even length up to {LARGEST_HEAD}"
        if not all(_has_one_scale(quantizer, problem.head_dim) for quantizer in (problem.key, problem.value)):
            return "keys and values on a grid of this package's with one scale a vector"
        return None

    def refusal_of_memory(self, problem: AttentionProblem) -> str | None:
        """By the shared memory that a block of the program takes, and a block of the device has."""
        from jointquant.runtime.kernels.shared_memory import KB, block_bytes
        from jointquant.runtime.kernels.triton_attention import shared_bytes

        needed, limit = shared_bytes(problem.head_dim), block_bytes(problem.device)
        if needed > limit:
            return f"{needed / KB:.0f} KB of shared memory for a block, where this device has {limit / KB:.0f}"
        return None

    def run(self, query: Tensor, keys: Tensor, values: Tensor, problem: AttentionProblem, scaling: float) -> Tensor:
        """[batch, heads, 1, head_dim]. Raises LaunchError where a program cannot be compiled or launched."""
        from jointquant.runtime.kernels.triton_attention import attend

        assert isinstance(problem.key, DynamicRange)
        assert isinstance(problem.value, DynamicRange)
        try:
            return attend(query, keys, values, (problem.key.fmt, problem.value.fmt), scaling)
        except Exception as error:
            failed = of_launch(error)
            if failed is None:
                raise
            raise failed from error


def _has_one_scale(quantizer: CacheRange | None, head_dim: int) -> bool:
    plain = isinstance(quantizer, DynamicRange) and not quantizer.fmt.signed_scale
    return plain and quantizer.fmt.group_size in (None, head_dim)  # type: ignore[union-attr]
