"""Run by ``test_operations``: the whole pipeline on a fake npu that refuses what the table says is missing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sized
from pathlib import Path

import pytest
import torch
from torch import Tensor

import fake_npu
import jointquant
from backend.test_operations import ROUTED
from conftest import DEMO, few_steps, make_model, small
from jointquant.backend import devices
from jointquant.backend.operations import MISSING, OPERATIONS, PROBED, passes, supports
from jointquant.recipe.recipe import Recipe, load_recipe
from jointquant.rounding import weights
from jointquant.runtime.loading import load_tokenizer
from texts import TEXTS

NPU = torch.device("npu:0") if fake_npu.install() is None else None  # torch knows the name now
TEXT = str(TEXTS / "calibration.txt")
SHIFTS = {"__lshift__", "__rshift__", "bitwise_left_shift", "bitwise_right_shift"}
FACTORISATIONS = {
    "qr": {"linalg_qr"},
    "cholesky": {"linalg_cholesky_ex", "cholesky"},
    "solve": {"_linalg_solve_ex", "linalg_inv_ex", "linalg_lu_factor_ex"},
    "eigh": {"_linalg_eigh"},
}
NOT_IN_BFLOAT16 = {"amax", "amin", "aminmax", "bucketize", "flip", "kthvalue", "logsumexp", "addr"}
"""What torch_npu lists without bfloat16."""
PRESETS = ("w4a4kv4", "dartquant", "jointquant")
LARGE = 2**40
"""Above, a product of int64 may leave their range."""


def lacking(operations: frozenset[str]) -> Callable[[str, list[Tensor]], str | None]:
    """What refuses some of ``OPERATIONS``, found by the names of torch's own and by dtypes."""
    refused = {name: kind for kind, names in FACTORISATIONS.items() for name in names if kind in operations}
    refused |= dict.fromkeys(SHIFTS, "shift") if "shift" in operations else {}
    dtypes = {getattr(torch, kind): kind for kind in ("float64", "bfloat16") if kind in operations}

    def refuse(name: str, tensors: list[Tensor]) -> str | None:
        for x in tensors:
            if x.dtype in dtypes:
                return dtypes[x.dtype]
            if x.dtype == torch.bfloat16 and name in NOT_IN_BFLOAT16:
                return "not in bfloat16"
        if "wrapping" in operations and name == "mul" and tensors[0].dtype == torch.int64:
            factors = tensors[:2]  # a third is what the product is written to
            return "wrapping" if any(fake_npu.on_host(x).abs().max() > LARGE for x in factors) else None
        return refused.get(name)

    return refuse


@pytest.fixture(autouse=True)
def nothing_tried(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(devices, "import_module", lambda name: None)  # torch_npu is not needed for this one
    passes.cache_clear()
    yield
    passes.cache_clear()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("npu") / "model"
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 1}
    make_model("llama", num_hidden_layers=2, **sizes).save_pretrained(folder)
    load_tokenizer(DEMO / "model").save_pretrained(folder)
    return folder


def recipes(names: tuple[str, ...]) -> dict[str, Recipe]:
    changes = {"jointquant": ["weights.group_size=16"]}
    two = ["calibration.num_samples=2", "calibration.seqlen=16"]
    return {name: load_recipe(name, small(*few_steps(name), *two, *changes.get(name, []))) for name in names}


@pytest.mark.parametrize(
    ("backend", "dtype", "probed"),
    [
        pytest.param("npu", "bfloat16", frozenset(), id="an npu that has what is tried"),
        pytest.param("mps", "auto", PROBED, id="as mps, which has none of it"),
    ],
)
def test_the_whole_pipeline(backend, dtype, probed, model: Path, tmp_path: Path, monkeypatch) -> None:
    """Each preset is quantized by, evaluated and generates; then one is compared with the model."""
    monkeypatch.setitem(MISSING, "npu", MISSING[backend])
    given = recipes(PRESETS)
    with fake_npu.present(lacking(MISSING[backend] | probed)) as machine:
        for name, recipe in given.items():
            artifact = tmp_path / name
            done = jointquant.quantize(model, artifact, recipe, device="auto", dtype=dtype)
            assert done.quantized_weights == 15360
            found = jointquant.evaluate(artifact, (TEXT,), reference=model, seqlen=16, max_tokens=32, device="npu")
            assert all(value > 1 for value in found.perplexity.values())
            assert jointquant.generate_text(artifact, "Once", max_new_tokens=3, device="npu").new_tokens == 3
        one = recipes(("dartquant",))
        compared = jointquant.compare(
            model, one, tmp_path / "c", texts=(TEXT,), eval_seqlen=16, max_tokens=32, device="npu", dtype=dtype
        )
        assert len(compared.rows) == 1
        assert machine.calls["mm"] > 0


def test_experts_are_rounded_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer) -> None:
    """On an accelerator without Cholesky: of the experts' MLPs both ends, each a stack."""
    together: list[int] = []
    round_alike = weights.round_alike

    def note(layer: object, sites: Sized, hessians: object) -> object:
        together.append(len(sites))
        return round_alike(layer, sites, hessians)  # type: ignore[arg-type]

    monkeypatch.setattr(weights, "round_alike", note)
    mixture = make_model("mixtral", num_hidden_layers=1)
    recipe = load_recipe("fp16", small("weights.num_bits=4", "weights.method=gptq"))
    with fake_npu.present(lacking(MISSING["npu"] | PROBED)):
        jointquant.quantize(mixture, tmp_path / "a", recipe, tokenizer=tokenizer, device="npu")
        assert jointquant.generate_text(tmp_path / "a", "Once", max_new_tokens=2, device="npu").new_tokens == 2
    assert together == [4, 4]


@pytest.mark.parametrize(("backend", "row"), [(name, row) for name, rows in MISSING.items() for row in sorted(rows)])
def test_each_row_of_the_table_is_needed(backend: str, row: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    with fake_npu.present(lacking(MISSING[backend])):
        monkeypatch.setitem(MISSING, "npu", MISSING[backend])
        ROUTED[row](x.to(NPU))
        monkeypatch.setitem(MISSING, "npu", MISSING[backend] - {row})
        with pytest.raises(fake_npu.RefusedError, match=row):
            ROUTED[row](x.to(NPU))


@pytest.mark.parametrize("operation", sorted(PROBED))
def test_what_is_tried_is_found_out(operation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    with fake_npu.present():
        assert all(supports(NPU, name) == (name not in MISSING["npu"]) for name in OPERATIONS)
    passes.cache_clear()
    with fake_npu.present(lacking(frozenset({operation}))):
        assert [name for name in PROBED if not supports(NPU, name)] == [operation]
        expected = ROUTED[operation](x)
        assert torch.equal(ROUTED[operation](x.to(NPU)).cpu(), expected)  # type: ignore[attr-defined,arg-type]
        monkeypatch.setattr("jointquant.backend.operations.PROBED", PROBED - {operation})
        with pytest.raises(fake_npu.RefusedError, match=operation):
            ROUTED[operation](x.to(NPU))


def test_the_fake_computes_what_the_host_does() -> None:
    x, y = torch.randn(6, 4), torch.randn(5, 4)
    with fake_npu.present() as machine:
        leaf = x.to(NPU).requires_grad_()
        product = torch.nn.functional.linear(leaf, y.to(NPU))
        (gradient,) = torch.autograd.grad(product.square().sum(), leaf)
        assert product.device == gradient.device == NPU
        assert torch.equal(product.cpu(), x @ y.T)
        torch.testing.assert_close(gradient.cpu(), 2 * (x @ y.T) @ y)
        view = leaf.detach()[1:3]
        view.zero_()
        assert torch.equal(leaf.detach().cpu()[1:3], torch.zeros(2, 4))
        machine.waits.clear()
        assert bool((leaf > -1000).all())
        assert sum(machine.waits.values()) == 1
