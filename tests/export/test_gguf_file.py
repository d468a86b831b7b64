"""GGUF files read back by the gguf package: integers, names, metadata; and what has no place in one."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter

from export.artifacts import Workshop
from jointquant import InputError, export_artifact
from jointquant.errors import ResumableError
from jointquant.export.artifact import Artifact
from jointquant.export.gguf_blocks import integers_of
from jointquant.export.gguf_rope import interleave
from jointquant.quantization.integer import IntFormat
from jointquant.runtime.loading import load_tokenizer


@pytest.fixture(scope="module")
def exported(workshop: Workshop) -> tuple[Artifact, GGUFReader]:
    artifact, file = workshop.of_demo("gguf"), workshop.folder / "demo.gguf"
    result = export_artifact(artifact, "gguf", file)
    assert result.tier == 1
    assert 0 < result.size_bytes < file.stat().st_size
    return Artifact.open(artifact), GGUFReader(file)


def test_the_file_holds_the_artifacts_integers(exported: tuple[Artifact, GGUFReader]) -> None:
    artifact, reader = exported
    stored = {tensor.name: tensor for tensor in reader.tensors}
    names = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v"}
    names |= {"self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up"}
    names |= {"mlp.down_proj": "ffn_down"}
    heads = {"attn_q": artifact.config.num_attention_heads, "attn_k": artifact.config.num_key_value_heads}
    for index in range(artifact.num_layers):
        for linear, name in names.items():
            tensor, weight = (
                stored[f"blk.{index}.{name}.weight"],
                artifact.quantized_weight(f"model.layers.{index}.{linear}"),
            )
            assert tensor.tensor_type == GGMLQuantizationType.Q4_0
            assert isinstance(weight.fmt, IntFormat)
            found = integers_of(tensor.data, weight.fmt)
            order = torch.arange(len(found.codes))
            if name in heads:
                order = interleave(order[:, None], heads[name])[:, 0]
            assert numpy.array_equal(found.codes, weight.codes[order].numpy())
            assert numpy.array_equal(found.scales, weight.scale[order].numpy())
    assert len(stored) == 7 * 9 + 3


def test_the_file_says_what_the_model_is(exported: tuple[Artifact, GGUFReader]) -> None:
    artifact, reader = exported
    values = {key: field.contents() for key, field in reader.fields.items()}
    config, tokenizer = artifact.config, load_tokenizer(artifact.folder)
    assert values["general.architecture"] == "llama"
    assert values["llama.embedding_length"] == config.hidden_size
    assert values["llama.context_length"] == config.max_position_embeddings
    assert values["llama.attention.head_count_kv"] == config.num_key_value_heads
    assert values["llama.rope.freq_base"] == config.rope_parameters["rope_theta"]
    assert values["tokenizer.ggml.model"] == "gpt2"
    assert values["tokenizer.ggml.tokens"] == tokenizer.convert_ids_to_tokens(range(config.vocab_size))
    assert values["tokenizer.ggml.bos_token_id"] == tokenizer.bos_token_id
    assert values["tokenizer.ggml.add_bos_token"] is False


def test_same_artifact_same_bytes(workshop: Workshop, tmp_path: Path) -> None:
    for name in ("a", "b"):
        export_artifact(workshop.of_demo("gguf"), "gguf", tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    ("family", "preset", "changes", "words"),
    [
        ("opt", "gguf", ("weights.group_size=16", "activations.group_size=16"), "no GGUF export of opt"),
        ("llama", "quarot", (), r"R4 is online \(`rotations.r4.kind=none`\)"),
        ("llama", "w4a16", ("weights.group_size=16",), "`weights.group_size=32`"),
        ("qwen3", "w4a8", ("rotations.r1.kind=none", "rotations.r2.kind=none"), "`activations.num_bits=16`"),
    ],
)
def test_what_a_file_cannot_hold_is_refused(
    workshop: Workshop, tmp_path: Path, family: str, preset: str, changes: tuple[str, ...], words: str
) -> None:
    light = ("rotations.r1.kind=hadamard", "rotations.r2.kind=hadamard") if preset == "gguf" else ()
    artifact = workshop.tiny(family, preset, *light, *changes)
    with pytest.raises(InputError, match=words):
        export_artifact(artifact, "gguf", tmp_path / "a.gguf")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_said_in_one_line(workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = workshop.of_demo("gguf")

    def full(self: GGUFWriter, tensor: object) -> None:
        raise OSError("6192 requested and 2592 written")  # as numpy words it, without a number

    monkeypatch.setattr(GGUFWriter, "write_tensor_data", full)
    with pytest.raises(ResumableError, match=r"the disk is full: no room for .* run the same command again$"):
        export_artifact(artifact, "gguf", tmp_path / "a.gguf")
    assert not list(tmp_path.iterdir())


def test_float32_scales_are_refused_with_the_setting_that_helps(workshop: Workshop, tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 96}
    artifact = workshop.tiny("llama", "w4a16", "weights.group_size=32", **sizes)
    with pytest.raises(InputError, match=r"tier 1: .*the scales of weights .*`weights.scale_dtype=float16`"):
        export_artifact(artifact, "gguf", tmp_path / "a.gguf")
    artifact = workshop.tiny("llama", "w4a16", "weights.group_size=32", "weights.scale_dtype=float16", **sizes)
    export_artifact(artifact, "gguf", tmp_path / "a.gguf")
