"""Hadamard matrices exactly (in integers) and the fast transform against independent NumPy oracles."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jointquant.rotations import hadamard
from jointquant.rotations.hadamard import (
    HadamardTransform,
    factor,
    hadamard_matrix,
    random_hadamard,
    supported_order,
)

# fmt: off
MODEL_SIZES = [
    8, 12, 20, 28, 32, 40, 64, 80, 96, 128, 160, 172, 192, 256, 344, 512, 688, 768, 896, 1152, 1408, 1536,
    2048, 2304, 2560, 3072, 3584, 4096, 4608, 4864, 5120, 5376, 5632, 6144, 6912, 7168, 8192, 8960, 9216,
    9728, 10240, 11008, 12288, 13824, 14336, 15360, 16384, 17408, 18432, 18944, 21504, 24576, 25600, 27648,
    28672, 29568, 36864, 53248,
]
UNREACHED_BELOW_500 = [
    188, 236, 260, 268, 292, 324, 356, 372, 376, 404, 412, 428, 436, 452, 472, 476,
]
# fmt: on
MODEL_BASES = sorted({factor(size)[1] for size in MODEL_SIZES})
KRONECKER_BASE = 1904  # = 28 x 68: no direct construction gives 476, 952 or 1904
PALEY_ONE_FIELDS = [(3, 1), (7, 1), (3, 3), (11, 1), (43, 1), (3, 5), (7, 3), (83, 1)]
PALEY_TWO_FIELDS = [(5, 1), (3, 2), (13, 1), (5, 2), (7, 2), (3, 4), (5, 3), (11, 2)]
TOLERANCE = 1e-12


@lru_cache
def naive_sylvester(order: int) -> np.ndarray:
    """[order, order] float64: entry (i, j) is the parity sign of the common bits of i and j."""
    return np.array([[(-1.0) ** (i & j).bit_count() for j in range(order)] for i in range(order)])


def naive_rotation(transform: HadamardTransform) -> np.ndarray:
    """[size, size] float64 rotation from the base matrix alone, all products by NumPy."""
    base = hadamard_matrix(transform.base).numpy().astype(np.float64)
    block = np.kron(naive_sylvester(transform.power_of_two), base) / math.sqrt(transform.block_size)
    return np.kron(np.eye(transform.size // transform.block_size), block)


def random_vectors(rows: int, size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def is_hadamard(matrix: torch.Tensor) -> bool:
    """H Hᵀ = n I with entries ±1; products in float64 are exact here (integers far below 2^53)."""
    order = matrix.shape[0]
    wide = matrix.double()
    gram = wide @ wide.T
    return bool((matrix.abs() == 1).all()) and torch.equal(gram, order * torch.eye(order, dtype=wide.dtype))


# --- matrices


@pytest.mark.parametrize("order", [*range(4, 261, 4), *MODEL_BASES, KRONECKER_BASE])
def test_matrices_are_hadamard_wherever_an_order_is_supported(order: int) -> None:
    if not supported_order(order):
        assert order in UNREACHED_BELOW_500
        return
    matrix = hadamard_matrix(order)
    assert matrix.shape == (order, order)
    assert matrix.dtype == torch.int8
    assert is_hadamard(matrix)


@pytest.mark.parametrize(("prime", "degree"), PALEY_ONE_FIELDS)
def test_paley_one_covers_primes_and_prime_powers(prime: int, degree: int) -> None:
    matrix = hadamard._paley_one(prime, degree)
    assert matrix.shape[0] == prime**degree + 1
    assert is_hadamard(matrix)
    skew = matrix - torch.eye(matrix.shape[0], dtype=torch.int8)
    assert torch.equal(skew, -skew.T)


@pytest.mark.parametrize(("prime", "degree"), PALEY_TWO_FIELDS)
def test_paley_two_covers_primes_and_prime_powers(prime: int, degree: int) -> None:
    matrix = hadamard._paley_two(prime, degree)
    assert matrix.shape[0] == 2 * (prime**degree + 1)
    assert is_hadamard(matrix)
    assert torch.equal(matrix, matrix.T)


def test_the_quadratic_character_of_a_prime_field_is_the_legendre_symbol() -> None:
    for prime in (3, 5, 7, 13, 31):
        euler = [pow(a, (prime - 1) // 2, prime) for a in range(prime)]
        legendre = [-1 if value == prime - 1 else value for value in euler]
        assert hadamard._jacobsthal(prime, 1)[:, 0].tolist() == legendre


def test_sylvester_orders_match_the_bit_parity_formula() -> None:
    for exponent in range(8):
        assert np.array_equal(hadamard_matrix(2**exponent).numpy(), naive_sylvester(2**exponent))


def test_unreached_orders_are_known_and_refused() -> None:
    unreached = [order for order in range(4, 500, 4) if not supported_order(order)]
    assert unreached == UNREACHED_BELOW_500
    for order in (188, 6, 3, 0, -4):
        assert not supported_order(order)
        with pytest.raises(ValueError, match=rf"1, 2 or a multiple of 4 .* got {order}$"):
            hadamard_matrix(order)


def test_a_returned_matrix_can_be_changed_without_harm() -> None:
    for order in (12, 16, 172):
        first = hadamard_matrix(order)
        kept = first.clone()
        first.zero_()
        assert torch.equal(hadamard_matrix(order), kept)


@given(st.integers(min_value=1, max_value=60_000))
@settings(max_examples=300, deadline=None)
def test_factor_splits_every_supported_order(order: int) -> None:
    if not supported_order(order):
        return
    power_of_two, base = factor(order)
    assert power_of_two * base == order
    assert power_of_two.bit_count() == 1
    assert base == 1 or (base % 4 == 0 and not (base % 8 == 0 and supported_order(base // 2)))


def test_factor_of_known_sizes() -> None:
    expected = {2: (2, 1), 12: (1, 12), 4096: (4096, 1), 11008: (64, 172), 53248: (1024, 52), 752: (1, 752)}
    assert {order: factor(order) for order in expected} == expected
    assert factor(2 * KRONECKER_BASE) == (2, KRONECKER_BASE)
    assert hadamard._direct_parts(KRONECKER_BASE) == (28, 68)


# --- transform


@pytest.mark.parametrize("size", MODEL_SIZES)
def test_model_sizes_have_a_full_orthonormal_transform(size: int) -> None:
    transform = HadamardTransform.of_size(size)
    assert not transform.is_block_diagonal
    assert transform.block_size == size == transform.power_of_two * transform.base
    x = random_vectors(3, size)
    y = transform.apply(x)
    assert torch.allclose(y.norm(dim=1), x.norm(dim=1), rtol=TOLERANCE, atol=0)
    assert torch.allclose(transform.apply(y, inverse=True), x, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("size", [172, 344, 1152, 11008, 13696, 29568, 53248, 2 * KRONECKER_BASE])
def test_rows_of_large_rotations_have_the_kronecker_structure(size: int) -> None:
    transform = HadamardTransform.of_size(size)
    base = hadamard_matrix(transform.base).numpy().astype(np.float64)
    places = sorted({0, 1, size // 3, size // 2 + 1, size - 1})
    units = torch.zeros(len(places), size, dtype=torch.float64)
    expected = np.zeros((len(places), size))
    for row, place in enumerate(places):
        units[row, place] = 1
        block, inside = divmod(place, transform.block_size)
        outer, inner = divmod(inside, transform.base)
        signs = [(-1.0) ** (outer & j).bit_count() for j in range(transform.power_of_two)]
        start = block * transform.block_size
        expected[row, start : start + transform.block_size] = np.kron(signs, base[inner])
    expected /= math.sqrt(transform.block_size)
    np.testing.assert_allclose(transform.apply(units).numpy(), expected, rtol=0, atol=1e-15)


@given(
    size=st.integers(min_value=1, max_value=180).map(lambda half: 2 * half),
    shape=st.lists(st.integers(min_value=0, max_value=3), max_size=3),
    inverse=st.booleans(),
    seed=st.integers(min_value=0, max_value=2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_apply_is_the_dense_product(size: int, shape: list[int], inverse: bool, seed: int) -> None:
    transform = HadamardTransform.of_size(size)
    dense = naive_rotation(transform)
    np.testing.assert_allclose(transform.matrix().numpy(), dense, rtol=0, atol=1e-15)
    np.testing.assert_allclose(dense @ dense.T, np.eye(size), rtol=0, atol=TOLERANCE)
    x = torch.randn(*shape, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    y = transform.apply(x, inverse=inverse)
    assert y.shape == x.shape
    np.testing.assert_allclose(y.numpy(), x.numpy() @ (dense.T if inverse else dense), rtol=0, atol=TOLERANCE)


def test_a_kronecker_base_is_applied_part_by_part() -> None:
    transform = HadamardTransform.of_size(KRONECKER_BASE)
    x = random_vectors(2, KRONECKER_BASE)
    assert torch.allclose(transform.apply(x), x @ transform.matrix(), rtol=0, atol=TOLERANCE)
    assert torch.allclose(transform.apply(x, inverse=True), x @ transform.matrix().T, rtol=0, atol=TOLERANCE)


def test_the_block_diagonal_fallback_is_largest_and_says_so() -> None:
    transform = HadamardTransform.of_size(13696)
    assert transform.is_block_diagonal
    assert (transform.block_size, transform.power_of_two, transform.base) == (128, 128, 1)
    assert transform.describe() == "block-diagonal Hadamard 13696 = 107 blocks of 2^7 x 1"
    assert HadamardTransform.of_size(188).block_size == 4
    assert HadamardTransform.of_size(6).block_size == 2
    x = random_vectors(2, 13696)
    y = transform.apply(x)
    assert torch.allclose(transform.apply(y, inverse=True), x, rtol=0, atol=TOLERANCE)


def test_describe_names_the_split() -> None:
    assert HadamardTransform.of_size(11008).describe() == "Hadamard 11008 = 2^6 x 172"
    assert HadamardTransform.of_size(4096).describe() == "Hadamard 4096 = 2^12 x 1"
    chosen = HadamardTransform.of_size(48, block_size=12)
    assert chosen.describe() == "block-diagonal Hadamard 48 = 4 blocks of 2^0 x 12"


def test_a_chosen_block_size_is_kept() -> None:
    transform = HadamardTransform.of_size(96, block_size=24)
    x = random_vectors(5, 96)
    by_block = HadamardTransform.of_size(24).apply(x.reshape(5, 4, 24)).reshape(5, 96)
    assert torch.allclose(transform.apply(x), by_block, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("size", [-2, 0, 1, 7, 13])
def test_odd_and_empty_sizes_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"even size of at least 2, got {size}"):
        HadamardTransform.of_size(size)


@pytest.mark.parametrize(("size", "block"), [(96, 64), (96, 1), (96, 6), (188, 188), (96, 0), (96, 192)])
def test_bad_block_sizes_are_refused(size: int, block: int) -> None:
    with pytest.raises(ValueError, match=r"block size|Hadamard order"):
        HadamardTransform.of_size(size, block_size=block)


def test_contradicting_fields_are_refused() -> None:
    with pytest.raises(ValueError, match="splits as"):
        HadamardTransform(size=48, block_size=48, power_of_two=2, base=24)


def test_apply_refuses_other_shapes_and_dtypes() -> None:
    transform = HadamardTransform.of_size(12)
    with pytest.raises(ValueError, match=r"\[\.\.\., 12\], got \(12, 3\)"):
        transform.apply(torch.zeros(12, 3))
    with pytest.raises(ValueError, match=r"got \(\)"):
        transform.apply(torch.tensor(1.0))
    for dtype in (torch.int64, torch.complex64):
        with pytest.raises(TypeError, match="floating"):
            transform.apply(torch.zeros(2, 12, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [64, 344, 13696])
def test_every_floating_dtype_is_kept(dtype: torch.dtype, size: int) -> None:
    transform = HadamardTransform.of_size(size)
    x = random_vectors(4, size).to(dtype)
    y = transform.apply(x)
    assert y.dtype == dtype
    exact = transform.apply(x.double())
    eps = torch.finfo(dtype).eps
    assert (y.double() - exact).abs().max() <= 8 * eps * exact.abs().max()


def test_half_precision_is_rounded_once() -> None:
    transform = HadamardTransform.of_size(4096)
    x = random_vectors(4, 4096).to(torch.bfloat16)
    assert torch.equal(transform.apply(x), transform.apply(x.float()).to(torch.bfloat16))


def test_autocast_does_not_lower_the_precision() -> None:
    transform = HadamardTransform.of_size(344)
    x = random_vectors(4, 344).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = transform.apply(x)
    assert y.dtype == torch.float32
    assert torch.equal(y, transform.apply(x))


def test_apply_leaves_its_input_and_takes_strided_views() -> None:
    transform = HadamardTransform.of_size(24)
    x = random_vectors(24, 10)
    kept = x.clone()
    assert torch.allclose(transform.apply(x.T), x.T @ transform.matrix(), rtol=0, atol=TOLERANCE)
    assert torch.equal(x, kept)


def test_apply_runs_on_the_device_of_its_input() -> None:
    x = torch.empty(2, 3, 344, device="meta")
    assert HadamardTransform.of_size(344).apply(x).device == x.device


@pytest.mark.parametrize("size", [12, 24, 188])
def test_gradients_are_the_transposed_rotation(size: int) -> None:
    transform = HadamardTransform.of_size(size)
    x = random_vectors(2, size).requires_grad_()
    cotangent = random_vectors(2, size, seed=1)
    (gradient,) = torch.autograd.grad(transform.apply(x), x, cotangent)
    assert torch.allclose(gradient, transform.apply(cotangent, inverse=True), rtol=0, atol=TOLERANCE)
    assert size > 24 or torch.autograd.gradcheck(transform.apply, (x,))


def test_a_first_use_in_inference_mode_or_on_meta_does_not_spoil_the_caches() -> None:
    hadamard._factor_on.cache_clear()
    hadamard._block.cache_clear()
    transform = HadamardTransform.of_size(24)
    with torch.inference_mode(), torch.device("meta"):
        transform.apply(torch.zeros(1, 24, device="cpu"))
        assert transform.matrix().device.type == "cpu"
    x = random_vectors(2, 24).float().requires_grad_()
    transform.apply(x).sum().backward()
    assert x.grad is not None


def test_a_transform_is_a_plain_value() -> None:
    first, second = HadamardTransform.of_size(11008), HadamardTransform.of_size(11008)
    assert first == second
    assert hash(first) == hash(second)
    assert HadamardTransform.of_size(8).matrix(torch.float32).dtype == torch.float32


# --- random rotations


@pytest.mark.parametrize("size", [2, 12, 64, 172, 188])
def test_random_hadamard_is_signs_then_the_transform(size: int) -> None:
    rotation = random_hadamard(size, torch.Generator().manual_seed(3))
    transform = HadamardTransform.of_size(size)
    assert rotation.dtype == torch.float64
    assert torch.allclose(rotation @ rotation.T, torch.eye(size, dtype=torch.float64), rtol=0, atol=TOLERANCE)
    ratios = rotation @ transform.matrix().T
    signs = ratios.diagonal().round()
    assert bool((signs.abs() == 1).all())
    x = random_vectors(3, size)
    assert torch.allclose(x @ rotation, transform.apply(x * signs), rtol=0, atol=TOLERANCE)


def test_random_hadamard_follows_its_generator() -> None:
    generator = torch.Generator().manual_seed(5)
    first, second = random_hadamard(64, generator), random_hadamard(64, generator)
    again = random_hadamard(64, torch.Generator().manual_seed(5))
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    with pytest.raises(ValueError, match="even size"):
        random_hadamard(7, generator)
