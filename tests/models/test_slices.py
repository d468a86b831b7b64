"""Rows of linears that compute several things."""

from __future__ import annotations

import torch

from jointquant.models.slices import HeadRows, LinearSlice


def test_rows_of_a_fused_linear() -> None:
    parts = ("query", "key", "value")
    assert LinearSlice("qkv", parts, "value").rows(48, 24) == slice(72, 96)
    assert LinearSlice("qkv", parts, "key").rows(48, 24) == slice(48, 72)
    assert LinearSlice("qkv", parts).out_features(48, 24) == 96
    assert LinearSlice("v_proj").rows(48, 24) == slice(0, 24)


def test_rows_of_values_head_by_head() -> None:
    """As transformers takes them apart: each head's outputs are split into a part of its key, and its value."""
    heads, key, value = 3, 5, 4
    rows = HeadRows("kv_b_proj", heads=heads, before=key).rows(heads * value, heads * value)
    outputs = torch.arange(heads * (key + value))
    expected = outputs.view(heads, key + value).split([key, value], dim=-1)[1].flatten()
    assert torch.equal(outputs[rows], expected)
    assert HeadRows("kv_b_proj", heads=heads, before=key).out_features(0, heads * value) == len(outputs)
