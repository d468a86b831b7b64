"""A token embedding with packed rows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from jointquant.quantization.integer import num_groups
from jointquant.quantization.packing import pack, packed_size, unpack
from jointquant.quantization.weights import QuantizedWeight, WeightFormat


class PackedEmbedding(nn.Module):
    """An embedding of packed rows; those that are asked for are unpacked.

    Buffers:
        weight_packed: int32 [vocabulary, words], dense along the row.
        weight_scale: [vocabulary, groups].
        weight_zero_point: int32 [words, groups], dense along the vocabulary; absent for formats that have none.
        like: of size 0, not stored: has the dtype that the model computes in.

    Args:
        num_embeddings: rows.
        embedding_dim: of a row.
        fmt: the grid or the codebook.
        factor: rows are multiplied by it, rounded to the model's dtype, as Gemma's embeddings do.
        scale_dtype: of the scales.
        dtype: that the model computes in; None: torch's default.
    """

    weight_packed: Tensor
    weight_scale: Tensor
    weight_zero_point: Tensor
    like: Tensor

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        fmt: WeightFormat,
        factor: float = 1.0,
        scale_dtype: torch.dtype = torch.float32,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim, self.fmt, self.factor = num_embeddings, embedding_dim, fmt, factor
        groups, words = num_groups(embedding_dim, fmt), packed_size(embedding_dim, fmt.num_bits)
        self.register_buffer("weight_packed", torch.zeros(num_embeddings, words, dtype=torch.int32))
        self.register_buffer("weight_scale", torch.zeros(num_embeddings, groups, dtype=scale_dtype))
        if fmt.has_zero_point:
            rows = packed_size(num_embeddings, fmt.num_bits)
            self.register_buffer("weight_zero_point", torch.zeros(rows, groups, dtype=torch.int32))
        self.register_buffer("like", torch.empty(0, dtype=dtype), persistent=False)

    @classmethod
    def of(cls, weight: QuantizedWeight, factor: float, dtype: torch.dtype) -> PackedEmbedding:
        """An embedding that holds ``weight`` [vocabulary, hidden]."""
        rows, size = weight.codes.shape
        with torch.device("meta"):
            embedding = cls(rows, size, weight.fmt, factor, weight.scale.dtype)
        embedding.weight_packed = pack(weight.codes, weight.fmt.num_bits)
        embedding.weight_scale = weight.scale
        if weight.fmt.has_zero_point:
            embedding.weight_zero_point = pack(weight.zero_point, weight.fmt.num_bits, dim=0)
        embedding.like = torch.empty(0, dtype=dtype, device=weight.codes.device)
        return embedding

    def rows(self, ids: Tensor) -> Tensor:
        """The rows of some ids [n], dequantized: [n, hidden] in the model's dtype."""
        bits, scale = self.fmt.num_bits, self.weight_scale[ids]
        codes = unpack(self.weight_packed[ids], bits, (len(ids), self.embedding_dim))
        zero_point = torch.zeros_like(scale, dtype=torch.int8)
        if self.fmt.has_zero_point:
            zero_point = unpack(self.weight_zero_point, bits, (self.num_embeddings, scale.shape[1]), dim=0)[ids]
        return QuantizedWeight(codes, scale, zero_point, self.fmt).dequantize(self.like.dtype)

    def forward(self, input_ids: Tensor) -> Tensor:
        """[…] ids → […, hidden]."""
        distinct, where = input_ids.flatten().unique(return_inverse=True)
        rows = self.rows(distinct)
        if self.factor != 1.0:
            rows = rows * torch.tensor(self.factor).to(rows)
        return rows[where].unflatten(0, input_ids.shape)

    def extra_repr(self) -> str:
        """Shown by print(model)."""
        return f"{self.num_embeddings}, {self.embedding_dim}, {self.fmt}"


def embedding_factor(embedding: nn.Module) -> float:
    """What an embedding of transformers multiplies its rows by (Gemma's do, others by 1)."""
    return float(getattr(embedding, "scalar_embed_scale", 1.0))
