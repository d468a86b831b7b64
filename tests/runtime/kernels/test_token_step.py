"""A decoder layer's step against the same layer written out in float64."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from jointquant.quantization.integer import IntFormat
from jointquant.quantization.packed_weight import PackedWeight
from jointquant.quantization.ranges import DynamicRange, StaticRange
from jointquant.rotations.hadamard import HadamardTransform
from jointquant.runtime.cached_states import Record
from jointquant.runtime.inner_butterfly import InnerButterfly
from jointquant.runtime.inner_rotation import INPUT_ROTATION, InnerRotation, as_integers, matrices
from jointquant.runtime.input_path import INPUT_MEAN, InputPath
from jointquant.runtime.kernels.compiler import missing
from jointquant.runtime.kernels.packed_product import ReadableWeight
from jointquant.runtime.kernels.token_step import AttentionParts, LayerParts, NormParts, SiteParts, TokenStep
from linears import linear_of

pytestmark = pytest.mark.skipif(missing() is not None, reason=f"the program {missing()}")
FOUR = DynamicRange(IntFormat(4, False))


def site_of(outs: list[int], size: int, path: InputPath, fmt: IntFormat, seed: int) -> SiteParts:
    """Linears with biases behind a path; its means and learned blocks are random."""
    generator = torch.Generator().manual_seed(seed)
    linears = [linear_of(out, size, fmt, path, bias=True, seed=seed + i) for i, out in enumerate(outs)]
    buffers = {INPUT_MEAN: torch.randn(size, generator=generator)} if path.centred else {}
    if isinstance(path.inner, InnerRotation):
        block = path.inner.block_size(size)
        drawn = torch.randn(size // block, block, block, generator=generator, dtype=torch.float64)
        buffers[INPUT_ROTATION] = as_integers(torch.linalg.qr(drawn).Q)
    weights = tuple(ReadableWeight.of(linear.packed_weight()) for linear in linears)
    return SiteParts(path, buffers, weights, tuple(linear.bias.detach() for linear in linears))


def products(site: SiteParts, x: Tensor) -> list[Tensor]:
    """What each linear makes of x [in], in float64."""
    if site.path.transform is not None:
        x = x @ site.path.transform.apply(torch.eye(len(x), dtype=torch.float64))
    if site.path.inner is not None:
        blocks = matrices(site.buffers[INPUT_ROTATION], torch.float64)
        x = torch.einsum("ni,nij->nj", x.view(len(blocks), -1), blocks).flatten()
    if site.path.centred:
        x = x - site.buffers[INPUT_MEAN].double()
    weights = [each.weight.unpacked().dequantize(torch.float64) for each in site.weights]
    return [weight @ x + bias.double() for weight, bias in zip(weights, site.biases, strict=True)]


def turns_of(places: tuple[Tensor, Tensor]) -> list[Tensor]:
    return [each.double().flatten() for each in places]


def normed(x: Tensor, norm: NormParts) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight.double()


def expected_output(parts: LayerParts, x: Tensor, places: list[Tensor], past: list[Tensor], restore) -> Tensor:
    """The layer's output for x [hidden] behind keys and values [kv_heads, tokens, head_dim], all in float64."""
    attention = parts.attention
    heads, kv_heads, size = attention.heads, attention.kv_heads, attention.head_dim
    query, key, value = products(parts.attn_in, normed(x, parts.attn_norm))
    query, key, value = query.view(heads, size), key.view(kv_heads, size), value.view(kv_heads, size)
    query, key = normed(query, attention.query_norm), normed(key, attention.key_norm)

    def turned(states: Tensor) -> Tensor:
        first, second = states.chunk(2, -1)
        return states * places[0] + torch.cat([-second, first], -1) * places[1]

    query, key = turned(query), turned(key) - attention.key_mean.double()
    key = torch.einsum("hi,hij->hj", key, attention.key_basis.double())
    query = torch.einsum("hgi,hij->hgj", query.view(kv_heads, -1, size), attention.query_basis.double())
    if attention.transform is not None:
        query, key = (attention.transform.apply(each) for each in (query, key))
    keys, values = (torch.cat([old, restore(new).unsqueeze(1)], 1) for old, new in zip(past, (key, value), strict=True))
    weights = (query @ keys.transpose(1, 2) * attention.scaling).softmax(-1)
    (added,) = products(parts.o_in, (weights @ values).flatten())
    x = x + added
    gate, up = products(parts.mlp_in, normed(x, parts.mlp_norm))
    (added,) = products(parts.down_in, gate * torch.sigmoid(gate) * up)
    return x + added


@given(
    heads=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    head_dim=st.sampled_from([8, 16, 24, 64]),
    sizes=st.tuples(st.sampled_from([32, 40, 96]), st.sampled_from([64, 96, 192])),
    fmt=st.builds(IntFormat, st.sampled_from([4, 8]), st.booleans(), st.sampled_from([None, 32])),
    inner=st.sampled_from([None, InnerRotation(16)]),
    turns=st.tuples(st.booleans(), st.booleans()),
    tokens=st.integers(0, 20),
    packed=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_a_layer(heads, head_dim, sizes, fmt, inner, turns, tokens, packed, seed) -> None:
    (kv_heads, group), (hidden, width) = heads, sizes
    fmt = replace(fmt, group_size=None) if hidden % 32 or (kv_heads * group * head_dim) % 32 else fmt
    packed = packed and head_dim % 16 == 0 and tokens > 0
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    everything = kv_heads * group * head_dim
    r4 = HadamardTransform.of_size(width, width & -width) if turns[1] else None
    ranges = (FOUR, DynamicRange(IntFormat(4, True), 0.9)) if packed else None
    attention = AttentionParts(
        kv_heads * group,
        kv_heads,
        head_dim,
        head_dim**-0.5,
        NormParts(1 + drawn(head_dim) / 3, 1e-6),
        NormParts((1 + drawn(head_dim) / 3).bfloat16(), 1e-5),
        drawn(kv_heads, head_dim),
        drawn(kv_heads, head_dim, head_dim) / math.sqrt(head_dim),
        drawn(kv_heads, head_dim, head_dim) / math.sqrt(head_dim),
        HadamardTransform.of_size(head_dim, head_dim & -head_dim) if turns[0] else None,
        ranges,
    )
    parts = LayerParts(
        site_of([everything, kv_heads * head_dim, kv_heads * head_dim], hidden, InputPath(), fmt, seed),
        site_of([hidden], everything, InputPath(centred=True), fmt, seed + 10),
        site_of([width, width], hidden, InputPath(centred=True), fmt, seed + 20),
        site_of([hidden], width, InputPath(r4, None, True, inner), fmt, seed + 30),
        NormParts(1 + drawn(hidden) / 3, 1e-6),
        NormParts((1 + drawn(hidden) / 3).half(), 1e-5),
        attention,
    )
    assert parts.refusal() is None
    x, angles, past = drawn(1, 1, hidden), drawn(1, 1, head_dim), drawn(2, 1, kv_heads, tokens, head_dim)
    places = (angles.cos(), angles.sin())
    if ranges is None:
        found = TokenStep(parts).with_values(
            x, places, lambda *new: [torch.cat(p, 2) for p in zip(past, new, strict=True)]
        )
        exact, restore = past[:, 0].double(), lambda new: new
        left = expected_output(parts, x.flatten().double(), turns_of(places), list(exact), restore)
        assert (found.flatten() - left).abs().max() < 1e-4 * left.abs().max()
        return
    records = [Record(each, head_dim, torch.float32) for each in ranges]
    kept = [torch.cat([r.encode(p), r.encode(p[:, :, :1]) * 0], 2) for r, p in zip(records, past, strict=True)]
    found = TokenStep(parts).with_records(x, places, *kept)
    exact = [r.decode(k).double()[0] for r, k in zip(records, kept, strict=True)]
    new = [each[:, -1] for each in exact]  # what it wrote itself: the rounding is tested elsewhere
    left = expected_output(
        parts,
        x.flatten().double(),
        turns_of(places),
        [each[:, :-1] for each in exact],
        lambda _: new.pop(0),
    )
    assert (found.flatten() - left).abs().max() < 1e-4 * left.abs().max()


def test_what_it_does_not_do() -> None:
    four, eight = IntFormat(4, True), IntFormat(8, True)

    def reason(path: InputPath, *formats: IntFormat) -> str:
        weights = [PackedWeight(*_tensors(linear_of(8, 64, fmt, InputPath())), 64, fmt) for fmt in formats]
        readable = tuple(map(ReadableWeight.of, weights))
        return str(SiteParts(path, {}, readable, (None,) * len(weights)).refusal())

    assert reason(InputPath(None, FOUR), four, four, four) == "None"
    assert "as many bits" in reason(InputPath(), four, eight)
    assert "at most 3 linears" in reason(InputPath(), *(four,) * 4)
    assert "range is found for each token" in reason(InputPath(None, StaticRange(eight, "tensor")), four)
    assert "before weights of 4 bits" in reason(InputPath(None, FOUR), eight)
    assert "one scale a token" in reason(InputPath(None, DynamicRange(IntFormat(4, False, 32))), four)
    assert "an R4 that is a Hadamard" in reason(InputPath(None, FOUR, inner=InnerButterfly()), four)
    dense = HadamardTransform.of_size(172, 172)
    assert "an R4 that is a Hadamard" in reason(InputPath(dense, FOUR), four)


def _tensors(linear) -> tuple[Tensor, Tensor, None]:
    return linear.weight_packed, linear.weight_scale, None
