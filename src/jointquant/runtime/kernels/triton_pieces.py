"""Products on the tensor cores of which one side is exact in bfloat16 and the other a sum of numbers that are.

The tensor cores' products of bfloat16 are exact and their sums are float32's, so that two or three of them give what a
product in float32 does, where one side has whole numbers or signs alone.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from jointquant.runtime.kernels.triton_tokens import FUSED


@triton.jit
def product(left, right, total, pieces: tl.constexpr, split_left: tl.constexpr):  # type: ignore[no-untyped-def]
    """total + left @ right, one exact in bfloat16, the other a sum of ``pieces`` such numbers; 0: in float32."""
    if pieces == 0:
        total = tl.dot(left.to(tl.float32), right.to(tl.float32), total, input_precision="ieee")
    else:
        rest = left.to(tl.float32) if split_left else right.to(tl.float32)
        for _ in tl.static_range(pieces):
            piece = rest.to(tl.bfloat16)
            if split_left:
                total = tl.dot(piece, right.to(tl.bfloat16), total)
            else:
                total = tl.dot(left.to(tl.bfloat16), piece, total)
            rest -= piece.to(tl.float32)
    return total


def pieces_of(dtype: torch.dtype) -> int:
    """Numbers of bfloat16 that a number is the sum of; 0 in the interpreter, which has none to multiply."""
    return {torch.bfloat16: 1, torch.float16: 2}.get(dtype, 3) if FUSED.value else 0
