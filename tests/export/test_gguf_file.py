"""GGUF files read back by the gguf package: integers, names, metadata; and what has no place in one."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, TokenType
from gguf.quants import dequantize
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from conftest import DEMO
from export.artifacts import Workshop
from jointquant import InputError, export_artifact
from jointquant.errors import ResumableError
from jointquant.export.artifact import Artifact
from jointquant.export.gguf_blocks import blocks_of, integers_of
from jointquant.export.gguf_metadata import FAMILIES, add_hyperparameters, interleave, rope_factors
from jointquant.export.gguf_tokenizer import PRE_TOKENIZERS, read_vocabulary
from jointquant.quantization.integer import IntFormat
from jointquant.quantization.weights import QuantizedWeight
from jointquant.runtime.loading import load_tokenizer


def random_weight(
    num_bits: int, rows: int, groups: int, seed: int, dtype: torch.dtype = torch.float16
) -> QuantizedWeight:
    generator = torch.Generator().manual_seed(seed)
    fmt = IntFormat(num_bits, symmetric=True, group_size=32)
    codes = torch.randint(fmt.q_min, fmt.q_max + 1, (rows, 32 * groups), generator=generator).to(torch.int8)
    scale = (torch.rand(rows, groups, generator=generator) + 0.01).to(dtype)
    return QuantizedWeight(codes, scale, torch.zeros(rows, groups, dtype=torch.int8), fmt)


@settings(deadline=None, max_examples=30)
@given(st.sampled_from([4, 8]), st.integers(1, 5), st.integers(1, 4), st.integers(0, 99))
def test_blocks_hold_the_integers(num_bits: int, rows: int, groups: int, seed: int) -> None:
    weight = random_weight(num_bits, rows, groups, seed)
    data = blocks_of(weight, "w")
    kind = {4: GGMLQuantizationType.Q4_0, 8: GGMLQuantizationType.Q8_0}[num_bits]
    assert numpy.array_equal(dequantize(data, kind), weight.dequantize().numpy())
    codes, scales = integers_of(data, num_bits)
    assert numpy.array_equal(codes, weight.codes.numpy())
    assert numpy.array_equal(scales, weight.scale.numpy())


def test_a_scale_that_float16_does_not_hold_is_refused() -> None:
    weight = random_weight(4, 2, 2, 0, torch.bfloat16)
    assert numpy.array_equal(integers_of(blocks_of(weight, "w"), 4)[1], weight.scale.float().numpy())
    weight.scale[0, 0] = 1e-9
    with pytest.raises(InputError, match=r"scales of w .*--set weights.scale_dtype=float16"):
        blocks_of(weight, "w")


def test_rotary_pairs_become_neighbours() -> None:
    """Two heads of four: each head's halves [0 1 | 2 3] are dealt in turn."""
    rows = torch.arange(8)[:, None].expand(8, 3)
    assert interleave(rows, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_stretched_positions_are_those_of_transformers() -> None:
    rope = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    config = LlamaConfig(hidden_size=2048, num_attention_heads=32, head_dim=64, rope_parameters=rope)
    inverse, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 500000.0 ** (-torch.arange(0, 64, 2, dtype=torch.float64) / 64)
    factors = rope_factors(config)
    assert factors is not None
    torch.testing.assert_close((plain / factors).float(), inverse, rtol=1e-5, atol=0)


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
            codes, scales = integers_of(tensor.data, 4)
            order = torch.arange(len(codes))
            if name in heads:
                order = interleave(order[:, None], heads[name])[:, 0]
            assert numpy.array_equal(codes, weight.codes[order].numpy())
            assert numpy.array_equal(scales, weight.scale[order].numpy())
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


def test_sentencepiece_scores_follow_the_merges() -> None:
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, "<0x41>": 3, "▁": 4, "a": 5, "b": 6, "ab": 7, "▁ab": 8}
    tokenizer = tokenizer_of(vocabulary, [("a", "b"), ("▁", "ab")])
    found = read_vocabulary(tokenizer, 10)
    assert (found.model, found.add_space_prefix) == ("llama", True)
    assert found.tokens == [*vocabulary, "[PAD9]"]
    assert found.scores[7] > found.scores[8] > found.scores[5]
    assert [found.types[i] for i in (0, 1, 3, 7, 9)] == [
        TokenType.UNKNOWN,
        TokenType.CONTROL,
        TokenType.BYTE,
        TokenType.NORMAL,
        TokenType.UNUSED,
    ]


def tokenizer_of(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> object:
    """A tokenizer as Llama 2 has it."""
    from tokenizers import Tokenizer, normalizers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize(
    ("part", "value", "words"),
    [
        ("normalizer", "Lowercase", "changes text first"),
        ("pre_tokenizer", "Digits", "splits by Digits"),
        ("ignore_merges", True, "ignore_merges"),
    ],
)
def test_what_a_tokenizer_does_besides_is_refused(part: str, value: object, words: str) -> None:
    """llama.cpp would not do it, and the file could not say so."""
    from tokenizers import normalizers, pre_tokenizers

    sentencepiece = tokenizer_of({"<unk>": 0, "<s>": 1, "</s>": 2, "<0x41>": 3, "▁": 4, "a": 5}, [])
    byte_level = AutoTokenizer.from_pretrained(DEMO / "model")
    for tokenizer in (sentencepiece, byte_level):
        read_vocabulary(tokenizer, 2048)
        backend = tokenizer.backend_tokenizer
        if part == "ignore_merges":
            backend.model.ignore_merges = value
        elif part == "normalizer":
            steps = [normalizers.Lowercase(), *([backend.normalizer] if backend.normalizer else [])]
            backend.normalizer = normalizers.Sequence(steps)
        elif backend.pre_tokenizer is None:
            backend.pre_tokenizer = pre_tokenizers.Digits()
        else:
            continue
        with pytest.raises(InputError, match=words):
            read_vocabulary(tokenizer, 2048)


def test_a_split_that_llama_cpp_has_no_name_for_is_refused(tmp_path: Path) -> None:
    from tokenizers import Regex, pre_tokenizers

    tokenizer = AutoTokenizer.from_pretrained(DEMO / "model")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for pattern, name in PRE_TOKENIZERS.items():
        if pattern:
            split = pre_tokenizers.Split(Regex(pattern), "isolated")
            tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
            assert read_vocabulary(tokenizer, 2048).pre == name
    split = pre_tokenizers.Split(Regex(r"\d"), "isolated")
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    with pytest.raises(InputError, match=r"splits text by '\\\\d'"):
        read_vocabulary(tokenizer, 2048)
    with pytest.raises(InputError, match="embedding 100 rows"):
        read_vocabulary(AutoTokenizer.from_pretrained(DEMO / "model"), 100)


@pytest.mark.parametrize(
    ("family", "preset", "changes", "words"),
    [
        ("phi3", "gguf", ("weights.group_size=16", "activations.group_size=16"), "no GGUF export of phi3"),
        ("llama", "quarot", (), r"R4 is online \(--set rotations.r4.kind=none\)"),
        ("llama", "w4a16", ("weights.group_size=16",), "--set weights.group_size=32"),
        ("qwen3", "w4a8", ("rotations.r1.kind=none", "rotations.r2.kind=none"), "--set activations.num_bits=16"),
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


def test_yarn_without_its_defaults_is_refused() -> None:
    rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 128}
    for change, words in (({}, None), ({"truncate": False}, "truncate: false"), ({"beta_fast": 16}, "beta_fast")):
        writer, given = GGUFWriter(None, "llama"), LlamaConfig(rope_parameters=rope | change)
        if words is None:
            add_hyperparameters(writer, given, FAMILIES["llama"])
        else:
            with pytest.raises(InputError, match=f"yarn with {words}"):
                add_hyperparameters(writer, given, FAMILIES["llama"])


def test_float32_scales_are_refused_with_the_setting_that_helps(workshop: Workshop, tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 96}
    artifact = workshop.tiny("llama", "w4a16", "weights.group_size=32", **sizes)
    with pytest.raises(InputError, match=r"tier 1: the scales of weights .*--set weights.scale_dtype=float16"):
        export_artifact(artifact, "gguf", tmp_path / "a.gguf")
    artifact = workshop.tiny("llama", "w4a16", "weights.group_size=32", "weights.scale_dtype=float16", **sizes)
    export_artifact(artifact, "gguf", tmp_path / "a.gguf")
