"""The Triton programs in Triton's interpreter (on the CPU), or on the GPU where there is one, against the reference."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from jointquant.backend import launches
from jointquant.evaluation.evaluate import EvaluationResult
from jointquant.quantization.integer import Codes, IntFormat, encode_rows
from jointquant.quantization.ranges import DynamicRange, InputRange, SearchedRange, StaticRange
from jointquant.quantization.weights import round_to_nearest
from jointquant.rotations.blocks import rotate_blocks
from jointquant.rotations.hadamard import HadamardTransform
from jointquant.runtime.generation import Generation
from jointquant.runtime.inner_rotation import InnerRotation, as_integers, matrices
from jointquant.runtime.input_path import InputPath
from jointquant.runtime.kernels.choices import kernel_choices
from jointquant.runtime.kernels.int4_triton import Int4Triton, halved, has_programs, token_codes
from jointquant.runtime.kernels.selection import REFERENCE, choose
from jointquant.runtime.linear import PackedLinear
from jointquant.runtime.site import SharedInput, SiteInput

pytest.importorskip("triton", reason="the Triton kernels need Triton: pip install triton")

from triton.runtime.errors import OutOfResources

from jointquant.runtime.kernels import triton_hadamard, triton_many_rows, triton_tokens

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
EPS = {torch.float32: 3e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}
TOKEN = st.builds(IntFormat, st.sampled_from([4, 8]), st.booleans())


def tokens(rows: int, size: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    x = torch.randn(rows, size, generator=torch.Generator().manual_seed(seed))
    return (x + 0.5 * torch.arange(rows)[:, None]).to(DEVICE, dtype)


@given(
    weight=st.builds(IntFormat, st.sampled_from([3, 4]), st.booleans(), st.sampled_from([None, 64, 128]))
    | st.builds(IntFormat, st.just(4), st.just(True), st.sampled_from([None, 64]), st.just(True)),
    quantizer=st.none() | st.builds(DynamicRange, TOKEN, st.sampled_from([1.0, 0.9])),
    sizes=st.sampled_from([(1, 256, 48), (3, 384, 70), (19, 256, 130), (70, 256, 40), (130, 128, 300)]),
    dtype=st.sampled_from(list(EPS)),
    seed=st.integers(0, 99),
)
@settings(max_examples=25, deadline=None)
def test_products(weight, quantizer, sizes, dtype, seed) -> None:
    assume(quantizer is not None or dtype != torch.bfloat16 or not INTERPRETED)  # numpy has no bfloat16 to multiply
    check(weight, quantizer, sizes, dtype, seed)


@pytest.mark.parametrize("quantizer", [None, DynamicRange(IntFormat(8, False))])
@pytest.mark.parametrize("rows", [1, 17, 65])
def test_odd_sizes(quantizer: DynamicRange | None, rows: int) -> None:
    check(IntFormat(4, False), quantizer, (rows, 150, 67), torch.float32, 0)


def test_no_rows() -> None:
    check(IntFormat(4, True), DynamicRange(IntFormat(8, False)), (0, 64, 16), torch.float32, 0)


def test_large_weights_are_expanded_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_many_rows, "ELEMENTS", 20 * 128)
    for quantizer in (None, DynamicRange(IntFormat(8, False))):
        check(IntFormat(4, False, 64), quantizer, (66, 128, 50), torch.float32, 0)


def check(weight: IntFormat, quantizer: DynamicRange | None, sizes, dtype: torch.dtype, seed: int) -> None:
    """Against the product in float64 of the same integers."""
    rows, in_features, out_features = sizes
    values = torch.randn(out_features, in_features, generator=torch.Generator().manual_seed(seed)) + 0.2
    rounded = round_to_nearest(values.to(DEVICE), weight, "none", torch.float32)
    path = InputPath(None, quantizer)
    linear = PackedLinear.of(rounded, None, path, {})
    kernel, x = Int4Triton(), tokens(rows, in_features, dtype, seed)
    problem = linear.problem(rows, dtype)
    assert kernel.refusal_of_formats(problem) is None
    y = kernel.run(SharedInput().read(x, path, {}), halved(rounded, quantizer))
    read = x if quantizer is None else quantizer.encode(x.cpu()).dequantize().to(DEVICE)  # a CPU divides exactly
    expected = read.double() @ rounded.dequantize(torch.float64).T
    assert y.dtype == dtype
    assert y.shape == expected.shape
    if rows:
        assert (y - expected).abs().max() <= EPS[dtype] * expected.abs().max()
    assert (choose(problem).name == "int4_triton") == (DEVICE == "cuda")


def agree(found: triton_tokens.Integers, expected: Codes) -> None:
    """Scales to rounding; integers but for values on the border of two. What is expected is made on a CPU."""
    integers, scale, zero_point = (part.cpu() for part in found)
    torch.testing.assert_close(scale, expected.scale.flatten().expand(len(scale)), rtol=1e-5, atol=0)
    assert torch.equal(zero_point.float(), expected.zero_point.flatten().float().expand(len(scale)))
    off = (integers - expected.integers.flatten(-2)).abs()
    assert off.max() <= 1
    assert off.mean() < 1e-3


ORDERS = (256, 768, 5120, 3584, 5632, 8192, 11008, 12288, 13824, 14336, 18944, 25600, 28672, 29568)
"""Of small models and of published ones: 2^k times 1, 12, 20, 28, 44, 100, 108, 148, 172 and 924."""


@pytest.mark.parametrize("size", ORDERS)
def test_a_transform_fits_by_the_bytes_of_its_programs(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    transform, device = HadamardTransform.of_size(size), torch.device(DEVICE)
    assert triton_hadamard.fits(transform, device)
    monkeypatch.setattr(triton_hadamard, "block_bytes", lambda device: triton_hadamard.factor_bytes() - 1)
    assert not triton_hadamard.fits(transform, device)
    assert not has_programs(InputPath(transform, DynamicRange(IntFormat(4, False))), device)


def larger_tiles(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """For large orders in the interpreter, which takes as long for a tile whatever its size."""
    if INTERPRETED and size > 6000:
        monkeypatch.setattr(triton_hadamard, "TILE", (16, 128))
        monkeypatch.setattr(triton_hadamard, "DEPTH", 128)
        monkeypatch.setattr(triton_hadamard, "block_bytes", lambda device: 2**20)
        triton_hadamard.fits_one_program.cache_clear()


@pytest.mark.parametrize("size", ORDERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hadamard_transforms(size: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    larger_tiles(size, monkeypatch)
    transform = HadamardTransform.of_size(size)
    assert not transform.is_block_diagonal
    x = tokens(2, size, dtype)
    found = triton_hadamard.hadamard(x, transform)
    expected = transform.apply(x.double().cpu())
    assert found.dtype == torch.float32
    assert (found.cpu() - expected).abs().max() < 2e-6 * expected.abs().max()


@pytest.mark.parametrize("size", ORDERS)
@pytest.mark.parametrize(("centred", "learned"), [(False, False), (True, False), (True, True)])
def test_transformed_and_quantized(size: int, centred: bool, learned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    larger_tiles(size, monkeypatch)
    transform, quantizer = HadamardTransform.of_size(size), DynamicRange(IntFormat(4, False), 0.9)
    inner = InnerRotation(128) if learned else None
    known = {"input_mean": torch.linspace(-1, 2, size).to(DEVICE)} if centred else {}
    x = tokens(2, size, torch.float32)
    arrived = transform.apply(x.cpu().double())
    if inner is not None:
        order = inner.block_size(size)
        stack = torch.randn(size // order, order, order, generator=torch.Generator().manual_seed(size))
        known["input_rotation"] = as_integers(torch.linalg.qr(stack)[0]).to(DEVICE)
        arrived = rotate_blocks(arrived, matrices(known["input_rotation"].cpu(), torch.float64))
    path = InputPath(transform, quantizer, centred, inner)
    assert has_programs(path, x.device)
    codes = token_codes(SiteInput(x, path, known))
    assert codes.zero_point is not None
    arrived = arrived.float() - (known["input_mean"].cpu() if centred else 0)
    agree((codes.integers, codes.scale.flatten(), codes.zero_point), encode_rows(arrived, quantizer.fmt, 0.9))


def test_most_transforms_take_one_program() -> None:
    device = torch.device(DEVICE)
    one = [size for size in ORDERS if triton_hadamard.fits_one_program(HadamardTransform.of_size(size), device)]
    assert one == [256, 768, 5120, 3584, 5632, 8192, 11008, 12288, 13824, 14336]


@pytest.fixture
def small_factors(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(triton_hadamard, "COMFORTABLE_FACTOR", 8)
    triton_hadamard.factor_orders.cache_clear()
    yield
    triton_hadamard.factor_orders.cache_clear()


@pytest.mark.usefixtures("small_factors")
@pytest.mark.parametrize(("size", "block_size"), [(192, 64), (344, 172), (1536, None)])
def test_blocks_and_more_than_two_factors(size: int, block_size: int | None) -> None:
    transform = HadamardTransform.of_size(size, block_size)
    x = tokens(3, size, torch.float32)
    expected = transform.apply(x.double().cpu())
    found = triton_hadamard.hadamard(x, transform)
    assert (found.cpu() - expected).abs().max() < 2e-6 * expected.abs().max()


@pytest.mark.parametrize("order", [16, 40, 96])
def test_learned_blocks(order: int) -> None:
    x, rotations = tokens(20, 3 * order, torch.float32), torch.randn(3, order, order).to(DEVICE)
    expected = (x.double().unflatten(1, (3, 1, -1)) @ rotations.double()).flatten(1)
    found = triton_hadamard.learned_blocks(x, rotations)
    assert (found - expected).abs().max() < 2e-6 * expected.abs().max()


@pytest.mark.parametrize("size", [64, 200, 5632])
@pytest.mark.parametrize("fmt", [IntFormat(4, False), IntFormat(8, True), IntFormat(8, False)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("centred", [False, True])
def test_quantization(size: int, fmt: IntFormat, dtype: torch.dtype, centred: bool) -> None:
    if centred and dtype == torch.bfloat16 and INTERPRETED:
        pytest.skip("the interpreter cuts numbers off where they should be rounded to bfloat16")
    x, mean = tokens(3, size, dtype), torch.linspace(-1, 2, size).to(DEVICE) if centred else None
    found = triton_tokens.token_integers(x, mean, DynamicRange(fmt, 0.9))
    x, mean = x.cpu(), None if mean is None else mean.to("cpu", dtype)
    agree(found, encode_rows(x if mean is None else x - mean, fmt, 0.9))


def test_not_a_number_is_passed_on() -> None:
    x = tokens(3, 64, torch.float32)
    x[1, 5] = torch.nan
    _, scale, _ = triton_tokens.token_integers(x, None, DynamicRange(IntFormat(4, False)))
    assert scale.isnan().tolist() == [False, True, False]


def known_of(quantizer: InputRange) -> dict[str, torch.Tensor]:
    """What a calibration could have found."""
    if isinstance(quantizer, SearchedRange):
        return {"input_clip_ratio": torch.tensor(0.8, device=DEVICE)}
    if isinstance(quantizer, StaticRange):
        known = {"input_scale": torch.tensor([0.02], device=DEVICE)}
        zero = {"input_zero_point": torch.tensor([3], dtype=torch.int8, device=DEVICE)}
        return known if quantizer.fmt.symmetric else known | zero
    return {}


@pytest.mark.parametrize(
    "quantizer",
    [
        DynamicRange(IntFormat(4, False), 0.9),
        SearchedRange(IntFormat(8, False)),
        StaticRange(IntFormat(8, False), "tensor"),
        StaticRange(IntFormat(8, True), "tensor"),
    ],
    ids=str,
)
@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("rows", [1, 5])
def test_whole_paths(quantizer: InputRange, rotated: bool, learned: bool, centred: bool, rows: int) -> None:
    check_path(quantizer, rotated, learned, centred, rows)


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("learned", [False, True])
def test_paths_of_many_tokens(rotated: bool, learned: bool) -> None:
    check_path(SearchedRange(IntFormat(8, False)), rotated, learned, True, 66)


def check_path(quantizer: InputRange, rotated: bool, learned: bool, centred: bool, rows: int) -> None:
    """Integers and the product against the path's own."""
    size = 192
    path = InputPath(
        HadamardTransform.of_size(size) if rotated else None, quantizer, centred, InnerRotation(32) if learned else None
    )
    known = known_of(quantizer) | {"input_mean": torch.linspace(-1, 2, size).to(DEVICE)}
    known["input_rotation"] = as_integers(torch.linalg.qr(torch.randn(6, 32, 32))[0]).to(DEVICE)
    x = tokens(rows, size, torch.float32)
    weight = round_to_nearest(torch.randn(48, size).to(DEVICE), IntFormat(4, False), "none", torch.float32)
    kernel, inputs = Int4Triton(), SiteInput(x, path, known)
    on_cpu = {name: value.cpu() for name, value in known.items()}
    wanted = quantizer.encode(path.arrive(x.cpu(), on_cpu), on_cpu)
    codes = token_codes(inputs)
    assert codes.zero_point is not None
    agree((codes.integers, codes.scale.flatten(), codes.zero_point), wanted)
    y = kernel.run(inputs, halved(weight, quantizer))
    expected = wanted.dequantize().to(DEVICE) @ weight.dequantize().T
    off = (y - expected).abs().max() / expected.abs().max()
    assert off < (3e-3 if quantizer.fmt.num_bits == 8 else 3e-2)  # an integer on a border may be its neighbour


@pytest.mark.parametrize("size", [64, 200, 5632])
@pytest.mark.parametrize("fmt", [IntFormat(4, False), IntFormat(8, False)])
def test_norm_and_quantization(size: int, fmt: IntFormat) -> None:
    x, weight = tokens(4, size, torch.float32), 1 + torch.arange(size, device=DEVICE) / size
    found = triton_tokens.rms_norm_integers(x, weight, 1e-5, fmt, 1.0)
    normed = torch.nn.functional.rms_norm(x.cpu(), (size,), weight.cpu(), 1e-5)
    agree(found, encode_rows(normed, fmt))


def test_zeros_have_a_scale() -> None:
    x = torch.zeros(1, 64, device=DEVICE)
    integers, scale, _ = triton_tokens.token_integers(x, None, DynamicRange(IntFormat(4, True)))
    assert scale.item() == 1
    assert (integers == 0).all()


@pytest.fixture
def nothing_failed():
    launches.forget()
    yield
    launches.forget()


@pytest.mark.usefixtures("nothing_failed")
def test_a_launch_that_fails_leaves_the_product_to_the_reference_and_says_so_once(monkeypatch) -> None:
    def run(self, inputs, prepared):
        raise launches.of_launch(OutOfResources(300000, 101376, "shared memory")) or AssertionError

    monkeypatch.setattr(Int4Triton, "run", run)
    monkeypatch.setattr(
        Int4Triton, "refusal", lambda self, problem: launches.reason(self.name, problem.at_any_length())
    )
    weight = round_to_nearest(torch.randn(32, 64).to(DEVICE), IntFormat(4, True), "none", torch.float32)
    path, x = InputPath(None, DynamicRange(IntFormat(8, False), 0.5)), tokens(3, 64, torch.float32)
    linear = PackedLinear.of(weight, None, path, {}, mode="auto")
    monkeypatch.setattr("jointquant.runtime.kernels.selection.ASKED", {"auto": (Int4Triton(), REFERENCE)})
    with pytest.warns(UserWarning, match=r"int4_triton cannot run a weight \[32, 64\] here.*shared memory") as said:
        results = [linear(x), linear(x), linear(x[:1])]
    assert len(said) == 1
    expected = path(x, {}) @ weight.dequantize().T
    torch.testing.assert_close(results[0], expected)
    torch.testing.assert_close(results[1], expected)
    assert linear.kernels_used() == ["reference"]
    (choice,) = kernel_choices(linear, rows=(7,), dtype=torch.float32)
    assert choice.kernel == "reference"
    assert "shared memory" in choice.reasons["int4_triton"]
    (failed,) = launches.failed_launches()
    assert (failed["program"], failed["what"]) == ("int4_triton", "a weight [32, 64]")
    assert "shared memory" in failed["reason"]
    for result in (EvaluationResult({}, 0, 0, 0.0), Generation("", 0, 0.0)):
        assert result.to_dict()["failed_launches"] == [failed]


def test_other_errors_are_no_failed_launches() -> None:
    assert launches.of_launch(ValueError("a defect")) is None
    assert launches.of_launch(RuntimeError("Triton Error [CUDA]: invalid argument")) is not None


def test_a_device_with_too_little_shared_memory_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def refusal(rows: int, dtype: torch.dtype, quantizer: InputRange | None, group_size: int | None) -> str | None:
        rounded = round_to_nearest(torch.randn(32, 256), IntFormat(4, True, group_size), "none", torch.float32)
        problem = PackedLinear.of(rounded, None, InputPath(None, quantizer), {}).problem(rows, dtype)
        return Int4Triton().refusal_of_memory(problem)

    eight = DynamicRange(IntFormat(8, False))
    cases = [
        (rows, dtype, quantizer, group)
        for rows in (1, 16, 64, 2048)
        for dtype in (torch.bfloat16, torch.float32)
        for quantizer in (None, eight)
        for group in (None, 128)
    ]
    assert all(refusal(*case) is None for case in cases)  # on the smallest known card
    monkeypatch.setattr("jointquant.runtime.kernels.shared_memory.block_bytes", lambda device: 64 * 1024)
    assert refusal(2048, torch.bfloat16, eight, None) == "96 KB of shared memory for a block, where this device has 64"
    assert refusal(2048, torch.bfloat16, None, None) is None  # torch's library multiplies
    assert refusal(16, torch.bfloat16, eight, None) is None
