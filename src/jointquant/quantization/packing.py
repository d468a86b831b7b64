"""Dense bit packing into int32 words, in the layout of compressed-tensors (its code does the work).

A device without shifts has it done by the host.
"""

from __future__ import annotations

import torch
from torch import Tensor

from jointquant.backend.devices import elements_at_once
from jointquant.backend.operations import runs_on


def packed_size(size: int, num_bits: int) -> int:
    """Words of 32 bits that hold ``size`` integers of ``num_bits``."""
    return -(-size * num_bits // 32)


def pack(codes: Tensor, num_bits: int, dim: int = 1) -> Tensor:
    """int8 [rows, columns] in the signed range of ``num_bits`` → int32, packed along ``dim``."""
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32  # slow to import

    place = runs_on(codes.device, "shift")
    parts = codes.split(_rows_at_once(codes.device, codes.shape[1])) if dim == 1 else (codes,)
    return _joined([pack_to_int32(part.to(place), num_bits, packed_dim=dim).to(codes.device) for part in parts])


def unpack(packed: Tensor, num_bits: int, shape: tuple[int, int], dim: int = 1) -> Tensor:
    """The inverse of :func:`pack`: int8 of ``shape``."""
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

    if dim == 0:  # a transposed single row keeps its strides in .contiguous(), which 4-bit unpacking cannot view
        rows = packed.t().clone(memory_format=torch.contiguous_format)
        return unpack(rows, num_bits, (shape[1], shape[0])).t().contiguous()
    place, columns = runs_on(packed.device, "shift"), shape[1]
    parts = [part.to(place) for part in packed.split(_rows_at_once(packed.device, columns))]
    found = [unpack_from_int32(part, num_bits, torch.Size((len(part), columns))) for part in parts]
    return _joined([part.to(packed.device) for part in found])


def _rows_at_once(device: torch.device, columns: int) -> int:
    """Rows that are packed together: meanwhile a number takes twelve bytes."""
    return max(1, elements_at_once(device) // max(1, columns))


def _joined(parts: list[Tensor]) -> Tensor:
    """Rows below each other; one part is no copy."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)
