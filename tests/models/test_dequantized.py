"""Weights stored in few bits: what they stand for, and models that are made of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from conftest import make_model
from jointquant.errors import InputError
from jointquant.models.dequantized import BlockFp8, Mxfp4, form_of
from jointquant.models.stream import open_stream

SIZES = {"hidden_size": 64, "intermediate_size": 32}
RNG = torch.Generator().manual_seed(1)


def packed(experts: int, outputs: int, inputs: int) -> tuple[Tensor, Tensor]:
    """Any numbers in MXFP4 of a weight [experts, inputs, outputs]."""
    shape = experts, outputs, inputs // 32
    blocks = torch.randint(0, 256, (*shape, 16), generator=RNG, dtype=torch.uint8)
    return blocks, torch.randint(118, 128, shape, generator=RNG, dtype=torch.uint8)


def with_settings(folder: Path, **settings: object) -> None:
    """The configuration in a folder says how weights are stored."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": settings}))


def test_mxfp4_is_what_transformers_reads() -> None:
    blocks, scales = packed(3, 10, 64)
    found = Mxfp4().restored(blocks, scales)
    assert torch.equal(found, convert_moe_packed_tensors(blocks, scales))
    assert found.shape == Mxfp4().shape(tuple(blocks.shape))


def test_blocks_of_fp8_have_their_scale() -> None:
    """Block by block, the last of a row and column cut short."""
    numbers = torch.randn(5, 7, generator=RNG).to(torch.float8_e4m3fn)
    scales = torch.rand(3, 3, generator=RNG)
    found = BlockFp8((2, 3)).restored(numbers, scales)
    expected = torch.stack(
        [torch.stack([numbers[i, j].float() * scales[i // 2, j // 3] for j in range(7)]) for i in range(5)]
    )
    assert torch.equal(found, expected.bfloat16())
    with pytest.raises(InputError, match="expected one a block"):
        BlockFp8((2, 3)).restored(numbers, scales[:2])


def test_a_checkpoint_in_mxfp4_is_the_model_of_its_numbers(save_model) -> None:
    folder = save_model("gpt_oss", **SIZES, dtype=torch.bfloat16)
    model = make_model("gpt_oss", dtype=torch.bfloat16, **SIZES)
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, inputs, outputs = tensors.pop(name).shape
        blocks, scales = packed(experts, outputs, inputs)
        tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        model.get_parameter(name).data = convert_moe_packed_tensors(blocks, scales)
    save_file(tensors, folder / "model.safetensors")
    with_settings(folder, quant_method="mxfp4")
    found, expected = open_stream(folder), open_stream(model)
    assert found.source.shapes() == expected.source.shapes()
    assert all(torch.equal(found.source.load(n), expected.source.load(n)) for n in found.source.shapes())
    assert not hasattr(found.config, "quantization_config")


def test_a_checkpoint_in_fp8_is_the_model_of_its_numbers(save_model) -> None:
    folder = save_model("deepseek_v3", dtype=torch.bfloat16)
    tensors = load_file(folder / "model.safetensors")
    plain = dict(tensors)
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        numbers = tensors[name].to(torch.float8_e4m3fn)
        scales = 0.5 + torch.rand(-(-numbers.shape[0] // 16), -(-numbers.shape[1] // 16), generator=RNG)
        plain[name] = BlockFp8((16, 16)).restored(numbers, scales)
        tensors |= {name: numbers, f"{name}_scale_inv": scales}
    save_file(tensors, folder / "model.safetensors")
    with_settings(folder, quant_method="fp8", weight_block_size=[16, 16], activation_scheme="dynamic")
    found = open_stream(folder).source
    name = "model.layers.1.mlp.experts.2.up_proj.weight"
    assert torch.equal(found.load(name), plain[name])
    assert found.dtype(name) == torch.bfloat16
    assert all(found.shapes()[n] == tuple(tensor.shape) for n, tensor in plain.items())
    del tensors[name]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(InputError, match=r"has scales of .*up_proj\.weight, which is not there"):
        open_stream(folder)


@pytest.mark.parametrize("settings", [{"quant_method": "gptq"}, {"quant_method": "fp8"}, {}])
def test_other_forms_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(InputError, match=r"already quantized .* expected one in floating point, or one whose weights"):
        form_of(settings)
