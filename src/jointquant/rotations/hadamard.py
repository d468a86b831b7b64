"""Hadamard matrices, and the fast orthonormal transform x → x H/√n made of them.

Rows are vectors and a rotation acts as x → x R with R orthogonal. A Hadamard matrix H of order n has
entries ±1 and H Hᵀ = n I. Every matrix here is a Kronecker product of a Sylvester matrix (J. J.
Sylvester, Phil. Mag. 34, 1867) and *direct* blocks, which are built without a Kronecker product:

* Paley I, order q + 1, and Paley II, order 2(q + 1), for prime powers q ≡ 3 and q ≡ 1 (mod 4)
  (R. E. A. C. Paley, "On orthogonal matrices", J. Math. Phys. 12, 1933);
* Williamson's array on stored seeds, orders 92, 116, 156 and 172 (see `williamson`).

The choice for each order is deterministic, so H is a function of its order alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache, partial, reduce

import torch

from jointquant.backend.products import linear_product
from jointquant.rotations.williamson import WILLIAMSON_LENGTHS, williamson_matrix

_SYLVESTER_LOG2_LIMIT = 6
"""Power-of-two dimensions are applied as dense Sylvester factors of order 2^6 at most.

Measured on [2048, 11008] float32, two CPU cores: one factor of 64 takes 0.071 s with the base of 172
(0.042 s of it), factors 8·8 take 0.086 s and butterflies 0.305 s; [2048, 16384]: 0.11 s against 1.09 s.
"""


# Finite fields GF(p^k): element e is the polynomial in x whose coefficients are the base-p digits of e.


@lru_cache(maxsize=4096)
def _prime_power(q: int) -> tuple[int, int] | None:
    """(p, k) with q = p^k and p prime, or None when q is not a prime power."""
    if q < 2:
        return None
    prime = next((d for d in range(2, math.isqrt(q) + 1) if q % d == 0), q)
    exponent = round(math.log(q, prime))
    return (prime, exponent) if prime**exponent == q else None


def _times_x(element: Sequence[int], low: Sequence[int], prime: int) -> tuple[int, ...]:
    """x · element mod x^k + low over GF(prime); both [k] coefficients from low to high."""
    return tuple((c - element[-1] * m) % prime for c, m in zip((0, *element[:-1]), low, strict=True))


def _nonzero_squares(prime: int, degree: int) -> list[tuple[int, ...]]:
    """The nonzero squares of GF(q), q = prime^degree, as [degree] coefficients: even powers of x.

    The modulus is the first monic polynomial for which the powers of x visit all q - 1 nonzero
    remainders; all of those are then units, so it is irreducible (and primitive).
    """
    one = (1, *[0] * (degree - 1))
    for high_first in itertools.product(range(prime), repeat=degree):
        low = high_first[::-1]
        powers, power = [one], _times_x(one, low, prime)
        while power != one and len(powers) < prime**degree:
            powers.append(power)
            power = _times_x(power, low, prime)
        if len(powers) == prime**degree - 1:
            return powers[::2]
    raise AssertionError(f"GF({prime}^{degree}) has no primitive polynomial")


def _jacobsthal(prime: int, degree: int) -> torch.Tensor:
    """[q, q] int8 matrix χ(a - b) over GF(q), q = prime^degree, χ the quadratic character (Paley 1933)."""
    weights = torch.tensor([prime**i for i in range(degree)], device="cpu")
    character = torch.full((prime**degree,), -1, dtype=torch.int8, device="cpu")
    character[(torch.tensor(_nonzero_squares(prime, degree), device="cpu") * weights).sum(dim=1)] = 1
    character[0] = 0
    digits = torch.arange(prime**degree, device="cpu")[:, None] // weights % prime
    return torch.stack([character[((a - digits) % prime * weights).sum(dim=1)] for a in digits])


# Dense ±1 blocks.


def _bordered(core: torch.Tensor, left: int) -> torch.Tensor:
    """[q+1, q+1] around `core` [q, q]: zero corner, ones as first row, `left` as first column."""
    bordered = torch.nn.functional.pad(core, (1, 0, 1, 0), value=1)
    bordered[1:, 0] = left
    bordered[0, 0] = 0
    return bordered


def _paley_one(prime: int, degree: int) -> torch.Tensor:
    """[q+1, q+1] int8 Hadamard matrix I + S with S skew; q = prime^degree ≡ 3 (mod 4)."""
    skew = _bordered(_jacobsthal(prime, degree), left=-1)
    return skew + torch.eye(skew.shape[0], dtype=torch.int8, device="cpu")


def _paley_two(prime: int, degree: int) -> torch.Tensor:
    """[2q+2, 2q+2] int8 Hadamard matrix from a symmetric conference matrix; q = prime^degree ≡ 1 (mod 4)."""
    conference = _bordered(_jacobsthal(prime, degree), left=1)
    beside = torch.tensor([[1, 1], [1, -1]], dtype=torch.int8, device="cpu")
    diagonal = torch.tensor([[1, -1], [-1, -1]], dtype=torch.int8, device="cpu")
    identity = torch.eye(conference.shape[0], dtype=torch.int8, device="cpu")
    return torch.kron(conference, beside) + torch.kron(identity, diagonal)


def _sylvester(order: int) -> torch.Tensor:
    """[n, n] int8 Sylvester matrix, symmetric, of an order that is a power of two."""
    one = torch.ones(1, 1, dtype=torch.int8, device="cpu")
    two = torch.tensor([[1, 1], [1, -1]], dtype=torch.int8, device="cpu")
    return reduce(torch.kron, [two] * (order.bit_length() - 1), one)


def _is_power_of_two(order: int) -> bool:
    return order > 0 and order & (order - 1) == 0


def _direct(order: int) -> Callable[[], torch.Tensor] | None:
    """How Paley I, Paley II or a stored Williamson seed (the first that fits) builds an order by itself."""
    if order % 4 == 0:
        if field := _prime_power(order - 1):
            return partial(_paley_one, *field)
        if order % 8 == 4 and (field := _prime_power(order // 2 - 1)):
            return partial(_paley_two, *field)
        if order // 4 in WILLIAMSON_LENGTHS:
            return partial(williamson_matrix, order // 4)
    return None


@lru_cache(maxsize=32)
def _block(order: int) -> torch.Tensor:
    """[n, n] int8 Sylvester (powers of two) or direct block; cached, so never handed out to be changed."""
    construct = partial(_sylvester, order) if _is_power_of_two(order) else _direct(order)
    assert construct is not None, f"{order} is neither a power of two nor a direct order"
    with torch.inference_mode(False):
        return construct()


@lru_cache(maxsize=4096)
def _direct_parts(order: int) -> tuple[int, ...] | None:
    """Direct orders, none a power of two, whose product is `order`: fewest first, then least sum."""
    if order % 4 or _is_power_of_two(order):
        return None
    if _direct(order):
        return (order,)
    lefts = (left for left in range(12, math.isqrt(order) + 1, 4) if order % (4 * left) == 0)
    pairs = ((_direct_parts(left), _direct_parts(order // left)) for left in lefts)
    candidates = [tuple(sorted(left + right)) for left, right in pairs if left and right]
    return min(candidates, key=lambda parts: (len(parts), sum(parts), parts), default=None)


@lru_cache(maxsize=4096)
def _split(order: int) -> tuple[int, int] | None:
    """`factor` without the error: (2^k, base), or None when no construction reaches the order."""
    if _is_power_of_two(order):
        return order, 1
    if order < 1 or order % 4:
        return None
    base = 4 * (order // (order & -order))
    while base <= order:
        if _direct_parts(base):
            return order // base, base
        base *= 2
    return None


def supported_order(order: int) -> bool:
    """Whether `hadamard_matrix` can build this order."""
    return _split(order) is not None


def factor(order: int) -> tuple[int, int]:
    """How an order n is split for a fast transform: n = power_of_two · base.

    Args:
        order: n, number of rows of the Hadamard matrix.

    Returns:
        (power_of_two, base): the value 2^k (not the exponent) and the smallest order with n / base a
        power of two that a direct construction, or a Kronecker product of such, reaches.

    Raises:
        ValueError: no construction here reaches the order.
    """
    split = _split(order)
    if split is None:
        reached = "a Paley, Williamson (92, 116, 156, 172) or Kronecker construction reaches"
        raise ValueError(f"a Hadamard order must be 1, 2 or a multiple of 4 that {reached}, got {order}")
    return split


def hadamard_matrix(order: int) -> torch.Tensor:
    """Hadamard matrix: Sylvester(power_of_two) ⊗ base, split as by `factor`.

    Args:
        order: n; 1, 2 or a multiple of 4 that a construction reaches.

    Returns:
        [n, n] int8 of ±1 on the CPU with H Hᵀ = n I; a fresh tensor (only its blocks are cached).

    Raises:
        ValueError: no construction here reaches the order.
    """
    power_of_two, base = factor(order)
    return reduce(torch.kron, map(_block, _direct_parts(base) or ()), _sylvester(power_of_two))


# The transform.


def _sylvester_split(power_of_two: int) -> tuple[int, ...]:
    """Orders, nearly equal and each within `_SYLVESTER_LOG2_LIMIT`, whose product is `power_of_two`."""
    exponent = power_of_two.bit_length() - 1
    count = -(-exponent // _SYLVESTER_LOG2_LIMIT)
    return tuple(2 ** ((exponent + i) // count) for i in range(count))


@lru_cache(maxsize=64)
def _factor_on(order: int, scale_of: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """[order, order] block divided by √scale_of, as `dtype` on `device`; a normal tensor for autograd."""
    with torch.inference_mode(False):
        return (_block(order).to(torch.float64) / math.sqrt(scale_of)).to(device=device, dtype=dtype)


def _without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """A context in which autocast cannot lower the precision of the products on `device`."""
    if torch.amp.autocast_mode.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


@dataclass(frozen=True)
class HadamardTransform:
    """An orthonormal Hadamard transform of vectors of length `size`, as a plain value.

    Attributes:
        size: n, the length of the vectors.
        block_size: order of the Hadamard matrix; a proper divisor of `size` means block-diagonal.
        power_of_two: the value 2^k in block_size = 2^k · base.
        base: order of the dense factor.

    Raises:
        ValueError: the fields contradict each other or `factor`.
    """

    size: int
    block_size: int
    power_of_two: int
    base: int

    def __post_init__(self) -> None:
        """Refuse fields that contradict each other."""
        if self.block_size < 2 or self.size < 2 or self.size % self.block_size:
            raise ValueError(f"block size must be at least 2 and divide the size, got {self}")
        if factor(self.block_size) != (self.power_of_two, self.base):
            raise ValueError(f"block size {self.block_size} splits as {factor(self.block_size)}, got {self}")

    @classmethod
    def of_size(cls, n: int, block_size: int | None = None) -> HadamardTransform:
        """The transform for vectors of length n.

        Args:
            n: length of the vectors; even.
            block_size: order of the Hadamard blocks; None takes the largest supported order that
                divides n, which is n itself where a Hadamard matrix of order n is known here.

        Raises:
            ValueError: n is odd or below 2, or `block_size` is unsupported or does not divide n.
        """
        if n < 2 or n % 2:
            raise ValueError(f"a Hadamard transform needs an even size of at least 2, got {n}")
        if block_size is None:
            block_size = next(n // d for d in range(1, n) if n % d == 0 and supported_order(n // d))
        return cls(n, block_size, *factor(block_size))

    @property
    def is_block_diagonal(self) -> bool:
        """Whether R is block-diagonal: no (or not the wanted) full Hadamard matrix of order `size`."""
        return self.block_size != self.size

    def describe(self) -> str:
        """For people, e.g. "Hadamard 11008 = 2^6 x 172"."""
        split = f"2^{self.power_of_two.bit_length() - 1} x {self.base}"
        if not self.is_block_diagonal:
            return f"Hadamard {self.size} = {split}"
        return f"block-diagonal Hadamard {self.size} = {self.size // self.block_size} blocks of {split}"

    def apply(self, x: torch.Tensor, inverse: bool = False) -> torch.Tensor:
        """x R with R = H/√n (in blocks where block-diagonal), or x Rᵀ; never forms R.

        Args:
            x: [..., size], any floating dtype and device. Types under 32 bits are computed in float32.
            inverse: apply the transpose, which is the inverse.

        Returns:
            [..., size], dtype and device of x, differentiable; O(size · (log size + base)) per vector.

        Raises:
            TypeError: x is not a real floating tensor.
            ValueError: the last dimension of x is not `size`.
        """
        return self.unrounded(x, inverse).to(x.dtype)

    def unrounded(self, x: torch.Tensor, inverse: bool = False) -> torch.Tensor:
        """As `apply`, in the dtype that it is computed in: float32 for types under 32 bits."""
        if not x.is_floating_point():
            raise TypeError(f"a Hadamard transform needs a real floating tensor, got {x.dtype}")
        if x.ndim == 0 or x.shape[-1] != self.size:
            raise ValueError(f"expected shape [..., {self.size}], got {tuple(x.shape)}")
        wide = x.to(torch.float32) if x.dtype.itemsize < 4 else x
        if x.numel() == 0:
            return wide.clone()
        with _without_autocast(x.device):
            return self._product(wide, inverse).reshape(x.shape)

    def _product(self, x: torch.Tensor, inverse: bool) -> torch.Tensor:
        """`apply` on the dtype of x, in any shape; dims [..., 2^a, 2^b, ..., base], last one first."""
        orders = (*_sylvester_split(self.power_of_two), *(_direct_parts(self.base) or ()))
        inner = 1
        for order in reversed(orders):
            scale_of = self.block_size if inner == 1 else 1
            matrix = _factor_on(order, scale_of, x.dtype, x.device)
            if inner == 1:
                x = linear_product(x.reshape(-1, order), matrix if inverse else matrix.T)
            else:
                stacked = x.reshape(-1, order, inner)
                x = torch.bmm((matrix if inverse else matrix.T).expand(len(stacked), -1, -1), stacked)
            inner *= order
        return x

    def matrix(self, dtype: torch.dtype = torch.float64) -> torch.Tensor:
        """Dense R, [size, size] on the CPU, with apply(x) == x @ R up to rounding."""
        block = hadamard_matrix(self.block_size).to(torch.float64) / math.sqrt(self.block_size)
        identity = torch.eye(self.size // self.block_size, dtype=torch.float64, device="cpu")
        return torch.kron(identity, block).to(dtype)


def random_hadamard(size: int, generator: torch.Generator) -> torch.Tensor:
    """Random rotation diag(s) H/√n: x → (x·s) H/√n, H as in (and described by) `HadamardTransform.of_size`.

    Args:
        size: n; even.
        generator: source of the n signs; advanced by one draw of n integers.

    Returns:
        [n, n] float64 orthonormal, on the CPU.

    Raises:
        ValueError: n is odd or below 2.
    """
    matrix = HadamardTransform.of_size(size).matrix()
    bits = torch.randint(0, 2, (size,), generator=generator, device=generator.device)
    return matrix.mul_((2 * bits - 1).to(device="cpu", dtype=torch.float64)[:, None])
