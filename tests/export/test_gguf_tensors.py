"""Which tensors a GGUF file gets of an artifact's."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader

from export.artifacts import Workshop
from jointquant import InputError, export_artifact
from jointquant.export.artifact import Artifact
from jointquant.export.gguf_blocks import integers_of
from jointquant.export.gguf_tensors import plan, stacked
from jointquant.quantization.integer import IntFormat

QUIET = ("rotations.r1.kind=hadamard", "rotations.r2.kind=hadamard", "weights.method=rtn")
SIZES = {"hidden_size": 64, "moe_intermediate_size": 32, "decoder_sparse_step": 1, "num_hidden_layers": 1}


def test_experts_are_stacked_by_their_numbers() -> None:
    experts = [f"l.0.mlp.experts.{number}.{name}" for number in range(11) for name in ("up_proj", "down_proj")]
    found = stacked(["l.0.mlp.gate", *sorted(experts)])
    assert list(found) == ["l.0.mlp.gate", "l.0.mlp.experts.down_proj", "l.0.mlp.experts.up_proj"]
    assert found["l.0.mlp.experts.up_proj"] == [f"l.0.mlp.experts.{number}.up_proj" for number in range(11)]


def test_the_integers_of_experts(workshop: Workshop, tmp_path: Path) -> None:
    artifact = workshop.tiny("qwen3_moe", "gguf", *QUIET, "weights.symmetric=false", **SIZES)
    export_artifact(artifact, "gguf", tmp_path / "a.gguf")
    opened = Artifact.open(artifact)
    stored = {tensor.name: tensor for tensor in GGUFReader(tmp_path / "a.gguf").tensors}
    down, router = stored["blk.0.ffn_down_exps.weight"], stored["blk.0.ffn_gate_inp.weight"]
    assert down.tensor_type == GGMLQuantizationType.Q4_1
    assert router.tensor_type == GGMLQuantizationType.F32
    assert torch.equal(torch.tensor(router.data), opened.load("model.layers.0.mlp.gate.weight").float())
    for number in range(5):
        weight = opened.quantized_weight(f"model.layers.0.mlp.experts.{number}.down_proj")
        assert isinstance(weight.fmt, IntFormat)
        assert numpy.array_equal(integers_of(down.data[number], weight.fmt).codes, weight.codes.numpy())


def test_experts_on_several_grids_are_refused(workshop: Workshop) -> None:
    eight = 'overrides=[{modules: "*experts.1.down_proj", weights: {num_bits: 8}}]'
    artifact = workshop.tiny("qwen3_moe", "gguf", *QUIET, eight, **SIZES)
    with pytest.raises(InputError, match=r"blk.0.ffn_down_exps.weight: the experts of a layer are on several grids"):
        plan(Artifact.open(artifact))


def test_a_head_of_its_own_where_llama_cpp_has_none_is_refused(workshop: Workshop) -> None:
    artifact = workshop.tiny("gemma2", "fp16", tie_word_embeddings=False)
    with pytest.raises(InputError, match=r"llama.cpp's gemma2 has one matrix for both"):
        plan(Artifact.open(artifact))
