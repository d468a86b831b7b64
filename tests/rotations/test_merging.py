"""Each merge is an identity between the rotated and the plain product, in float64."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import linear

from jointquant.rotations import merging
from jointquant.rotations.hadamard import HadamardTransform
from jointquant.rotations.orthogonal import orthogonal_factor

sizes = st.sampled_from([4, 8, 12, 20])


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def rotation(*shape: int, seed: int) -> Tensor:
    return orthogonal_factor(random(*shape, shape[-1], seed=seed))


@given(size=sizes, out=sizes, seed=st.integers(0, 50))
def test_reader_and_writer(size: int, out: int, seed: int) -> None:
    x, weight, bias = random(5, size, seed=seed), random(out, size, seed=seed + 1), random(out, seed=seed + 2)
    r_in, r_out = rotation(size, seed=seed + 3), rotation(out, seed=seed + 4)
    y = linear(x, weight, bias)
    torch.testing.assert_close(linear(x @ r_in, merging.rotate_rows(weight, r_in), bias), y)
    rotated = linear(x, merging.rotate_output(weight, r_out), merging.rotate_rows(bias, r_out))
    torch.testing.assert_close(rotated, y @ r_out)


@given(size=sizes, seed=st.integers(0, 50))
def test_online_transform_and_its_inverse(size: int, seed: int) -> None:
    x, weight = random(5, size, seed=seed), random(7, size, seed=seed + 1)
    transform = HadamardTransform.of_size(size)
    torch.testing.assert_close(
        linear(transform.apply(x), merging.transform_input(weight, transform)), linear(x, weight)
    )


@given(kv_heads=st.integers(1, 3), group=st.integers(1, 3), head_dim=sizes, seed=st.integers(0, 50))
def test_values_and_output(kv_heads: int, group: int, head_dim: int, seed: int) -> None:
    """Values of each KV head leave rotated, query heads of its group arrive rotated: o_proj's output is unchanged."""
    x, r2 = random(5, 6, seed=seed), rotation(kv_heads, head_dim, seed=seed + 1)
    value, bias = random(kv_heads * head_dim, 6, seed=seed + 2), random(kv_heads * head_dim, seed=seed + 3)
    output = random(9, kv_heads * group * head_dim, seed=seed + 4)

    def attend(v: Tensor) -> Tensor:  # attention that looks at one token: values repeated over the group
        return v.unflatten(-1, (kv_heads, head_dim)).repeat_interleave(group, dim=-2).flatten(-2)

    expected = linear(attend(linear(x, value, bias)), output)
    rotated = linear(x, merging.rotate_head_outputs(value, r2), merging.rotate_head_bias(bias, r2))
    torch.testing.assert_close(linear(attend(rotated), merging.rotate_head_inputs(output, r2)), expected)


def test_norm_weight_moves_into_the_reader() -> None:
    x, weight, gamma = random(5, 8, seed=0), random(3, 8, seed=1), random(8, seed=2)
    torch.testing.assert_close(linear(x, merging.scale_input(weight, gamma)), linear(x * gamma, weight))


def test_merging_is_done_in_float64() -> None:
    weight = random(4, 4, seed=0).float()
    assert merging.rotate_rows(weight, rotation(4, seed=1)).dtype == torch.float64
