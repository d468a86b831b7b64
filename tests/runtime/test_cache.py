"""The packed cache: the values of quantizing everything anew, fewer bytes, and all that generation does with it."""

from __future__ import annotations

from inspect import signature
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, DynamicCache, LlamaForCausalLM, PreTrainedModel

import jointquant
from conftest import FAMILIES, make_model, small
from jointquant.quantization.integer import IntFormat
from jointquant.quantization.ranges import DynamicRange
from jointquant.rotations.hadamard import HadamardTransform
from jointquant.runtime.attention import CachePath
from jointquant.runtime.cache import CACHE, PackedCache, PackedLayer, Record

INPUT_IDS = torch.arange(40).reshape(2, 20) * 7 % 2048
OPTIONS = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}


@given(
    bits=st.integers(2, 8),
    symmetric=st.booleans(),
    groups=st.sampled_from([1, 2, 4]),
    head_dim=st.sampled_from([4, 12, 20, 64]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
    seed=st.integers(0, 99),
)
@settings(max_examples=80, deadline=None)
def test_a_record_gives_what_the_quantizer_gives(bits, symmetric, groups, head_dim, dtype, seed) -> None:
    quantizer = DynamicRange(IntFormat(bits, symmetric, None if groups == 1 else head_dim // groups), 0.9)
    states = torch.randn(2, 3, 5, head_dim, generator=torch.Generator().manual_seed(seed)).to(dtype)
    record = Record(quantizer, head_dim, dtype)
    assert torch.equal(record.decode(record.encode(states)), quantizer.quantize(states))


@pytest.mark.parametrize("head_dim", [7, 64])
def test_odd_vectors_and_unquantized_ones(head_dim: int) -> None:
    states = torch.randn(1, 2, 3, head_dim)
    quantizer = DynamicRange(IntFormat(4, False))
    record = Record(quantizer, head_dim, states.dtype)
    assert torch.equal(record.decode(record.encode(states)), quantizer.quantize(states))
    plain = Record(None, head_dim, states.dtype)
    assert torch.equal(plain.decode(plain.encode(states)), states)


@pytest.mark.parametrize(("head_dim", "most"), [(64, 0.29), (128, 0.27)])
def test_four_bits_take_less_than_a_third(head_dim: int, most: float) -> None:
    """Scales and zero points included, of what the cache of transformers keeps in bfloat16."""
    quantizer = DynamicRange(IntFormat(4, False))
    layer = PackedLayer(CachePath(HadamardTransform.of_size(head_dim), quantizer, quantizer), {})
    states = torch.randn(2, 4, 9, head_dim, dtype=torch.bfloat16)
    for _ in range(3):
        keys, _ = layer.update(states, states)
    assert keys.shape == (2, 4, 27, head_dim)
    assert (layer.keys.nbytes + layer.values.nbytes) / (2 * 3 * states.nbytes) <= most


def artifact(family: str, folder: Path, tokenizer, *changes: str) -> PreTrainedModel:
    common = ["rotations.r3.kind=hadamard", "kv_cache.num_bits=4", *changes]
    jointquant.quantize(make_model(family), folder, jointquant.load_recipe("fp16", small(*common)), tokenizer=tokenizer)
    return AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_is_the_same_with_fewer_bytes(family: str, tmp_path: Path, tokenizer) -> None:
    """Beyond the sliding window, where there is one; against transformers' own cache, all quantized at each step."""
    model = artifact(family, tmp_path / "a", tokenizer)
    kept: dict[str, object] = {}

    def generate(**options: object) -> torch.Tensor:
        found = model.generate(INPUT_IDS, **OPTIONS, **options, return_dict_in_generate=True)
        kept["cache"] = found.past_key_values
        return found.sequences

    packed = generate()
    cache = kept["cache"]
    assert isinstance(cache, PackedCache)
    plain = generate(past_key_values=DynamicCache(config=model.config))
    assert type(kept["cache"]) is DynamicCache
    assert torch.equal(packed, plain)
    whole = sum(layer.keys.nbytes + layer.values.nbytes for layer in kept["cache"].layers)
    assert cache.nbytes() < whole / 3


def test_models_take_a_cache_under_the_name_that_we_give_it_by() -> None:
    """Under another one a model makes a cache of its own, and says that the name is out of date."""
    assert CACHE in signature(LlamaForCausalLM.forward).parameters


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_logits_are_the_same_bit_for_bit(family: str, tmp_path: Path, tokenizer) -> None:
    """Keys at 4 bits in groups, values at 8 bits and symmetric."""
    changes = ("kv_cache.keys={group_size: 4}", "kv_cache.values={num_bits: 8, symmetric: true}")
    model = artifact(family, tmp_path / "a", tokenizer, *changes)
    packed, plain = PackedCache(model), DynamicCache(config=model.config)
    with torch.no_grad():
        for chunk in INPUT_IDS.split([9, 1, 1, 4, 1, 4], dim=1):
            logits = [model(input_ids=chunk, past_key_values=cache).logits for cache in (packed, plain)]
            assert torch.equal(*logits)


def test_beams_and_batches(tmp_path: Path, tokenizer) -> None:
    model = artifact("llama", tmp_path / "a", tokenizer)
    options = OPTIONS | {"num_beams": 3}
    plain = model.generate(INPUT_IDS, **options, past_key_values=DynamicCache(config=model.config))
    assert torch.equal(model.generate(INPUT_IDS, **options), plain)


def test_what_the_caller_asks_for_stays(tmp_path: Path, tokenizer) -> None:
    model = artifact("llama", tmp_path / "a", tokenizer)
    found = model.generate(INPUT_IDS, **OPTIONS, return_dict_in_generate=True, cache_implementation="static")
    assert not isinstance(found.past_key_values, PackedCache)
    assert torch.equal(model.generate(INPUT_IDS, **OPTIONS, use_cache=False), found.sequences)
    unquantized = artifact("llama", tmp_path / "b", tokenizer, "kv_cache.num_bits=16")
    found = unquantized.generate(INPUT_IDS, **OPTIONS, return_dict_in_generate=True)
    assert type(found.past_key_values) is DynamicCache
