"""Which kernel attends over a packed cache: the table, and the choice."""

from __future__ import annotations

from jointquant.runtime.kernels.attention_interface import AttentionKernel, AttentionProblem
from jointquant.runtime.kernels.attention_triton import AttentionTriton
from jointquant.runtime.kernels.packed_attention import PackedAttention

ATTENTION: tuple[AttentionKernel, ...] = (PackedAttention(), AttentionTriton())
"""In the order in which they are asked; where none does a problem, torch attends over the expanded vectors."""


def choose_attention(problem: AttentionProblem) -> AttentionKernel | None:
    """The first that does a problem; None: none does."""
    return next((kernel for kernel in ATTENTION if kernel.refusal(problem) is None), None)


def attention_reasons(problem: AttentionProblem) -> dict[str, str]:
    """Why each kernel before the chosen one does not do a problem, by its name."""
    found: dict[str, str] = {}
    for kernel in ATTENTION:
        reason = kernel.refusal(problem)
        if reason is None:
            break
        found[kernel.name] = reason
    return found
