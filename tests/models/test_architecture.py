"""Families as data."""

from __future__ import annotations

from jointquant.models.slices import LinearSlice


def test_rows_of_a_fused_linear() -> None:
    parts = ("query", "key", "value")
    assert LinearSlice("qkv", parts, "value").rows(48, 24) == slice(72, 96)
    assert LinearSlice("qkv", parts, "key").rows(48, 24) == slice(48, 72)
    assert LinearSlice("qkv", parts).out_features(48, 24) == 96
    assert LinearSlice("v_proj").rows(48, 24) == slice(0, 24)
