"""Linears that read the same input."""

from __future__ import annotations

import pytest
import torch

from jointquant.quantization.integer import IntFormat
from jointquant.quantization.ranges import CLIP_RATIO, DynamicRange, SearchedRange
from jointquant.runtime.input_path import InputPath
from jointquant.runtime.site import SharedInput
from linears import linear_of, tokens


@pytest.mark.parametrize("same", [True, False])
def test_linears_of_a_site_quantize_once(same: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the ratio is known beforehand, if it is the same."""
    calls, searched = [], []
    encode = SearchedRange.encode
    monkeypatch.setattr(SearchedRange, "encode", lambda self, *a: searched.append(1) or encode(self, *a))
    original = DynamicRange.encode
    monkeypatch.setattr(DynamicRange, "encode", lambda self, *a: calls.append(1) or original(self, *a))
    path, site = InputPath(None, DynamicRange(IntFormat(8, False))), SharedInput(2)
    pair = [linear_of(16, 64, IntFormat(4, True), path, seed=seed) for seed in (0, 1)]
    x = tokens(3, 64, torch.float32)
    apart = [linear(x) for linear in pair]
    assert len(calls) == 2
    for linear in pair:
        linear.shared = site
    assert all(torch.equal(linear(x), y) for linear, y in zip(pair, apart, strict=True))
    assert len(calls) == 3
    assert site._last is None
    for linear, ratio in zip(pair, (0.5, 0.5 if same else 0.7), strict=True):
        linear.path, linear._input_names = InputPath(None, SearchedRange(IntFormat(8, False))), (CLIP_RATIO,)
        setattr(linear, CLIP_RATIO, torch.tensor(ratio))
        linear(x)
    assert len(calls) == 3
    assert searched == [1] * (1 if same else 2)
    site._last = None
    before = [linear(x) for linear in pair]
    x.mul_(2)
    torch.testing.assert_close([linear(x) for linear in pair], [2 * y for y in before])
