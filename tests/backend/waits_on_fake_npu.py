"""Run by ``test_operations``: how often the host waits for a fake npu while it trains rotations, refines and rounds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import fake_npu
import jointquant
from conftest import make_model, small
from jointquant.backend.operations import MISSING
from jointquant.models.layer import Place
from jointquant.models.stream import open_stream
from jointquant.quantization.gptq import HessianSum, factorize, gptq
from jointquant.quantization.gptq_stack import factorize_stack, gptq_stack
from jointquant.quantization.integer import IntFormat
from jointquant.quantization.ranges import DynamicRange, clip_search
from jointquant.rotations import optimizers
from jointquant.rotations.hadamard import random_hadamard
from jointquant.rotations.learning import Training, learn
from jointquant.rotations.objectives import OBJECTIVES, whip
from jointquant.rotations.optimizers import OPTIMIZERS, RETRACT_EVERY, SETTLING, Schedule
from jointquant.rotations.orthogonal import LOOSELY, STRAYED, brought_back
from jointquant.rounding import refinement
from jointquant.runtime.cache import PackedCache

NPU = torch.device("npu:0") if fake_npu.install() is None else None  # torch knows the name now
QUANTIZER = DynamicRange(IntFormat(4, False))
STEPS = RETRACT_EVERY + 4
PAIRS = [("newton_schulz", name) for name in OBJECTIVES]
PAIRS += [(name, "whip") for name in OPTIMIZERS if name != "newton_schulz"]


@pytest.fixture(autouse=True)
def all_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device has what others lack: nothing is done on the host instead."""
    monkeypatch.setitem(MISSING, "npu", frozenset())


def waited(machine: fake_npu.Machine) -> int:
    """How often the host waited so far, for a result or for what it sent."""
    return sum(machine.waits.values()) + sum(machine.sent.values())


def noted(monkeypatch: pytest.MonkeyPatch, machine: fake_npu.Machine) -> list[int]:
    """``waited`` at the beginning of each step of an optimiser."""
    counts: list[int] = []
    rate = Schedule.rate

    def note(self: Schedule, step: int) -> float:
        counts.append(waited(machine))
        return rate(self, step)

    monkeypatch.setattr(Schedule, "rate", note)
    return counts


def samples(tokens: int = 64) -> Tensor:
    return torch.randn(tokens, 16, generator=torch.Generator().manual_seed(1)).to(NPU)


def train(optimizer: str, objective: Callable[[Tensor], Tensor], schedule: Schedule) -> Tensor:
    start = random_hadamard(16, torch.Generator().manual_seed(0))
    training = Training(objective, OPTIMIZERS[optimizer], schedule, batch_tokens=24)  # type: ignore[index]
    return learn(samples(), start, training, torch.Generator().manual_seed(2)).rotation


@pytest.mark.parametrize(("optimizer", "objective"), PAIRS)
def test_no_step_of_a_training_waits(optimizer: str, objective: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_npu.present() as machine:
        counts = noted(monkeypatch, machine)
        train(optimizer, OBJECTIVES[objective](QUANTIZER), Schedule(STEPS, 0.1, 0.9))  # type: ignore[index]
        assert len(counts) == STEPS
        assert counts[0] == counts[-1], machine.waits + machine.sent


def test_a_training_that_may_end_early_looks_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_npu.present() as machine:
        counts = noted(monkeypatch, machine)
        train("newton_schulz", whip, Schedule(6 * SETTLING, 0.1, 0.9, tolerance=1e-9))
        assert 1 <= counts[-1] - counts[0] <= 3


def test_what_counts_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that reads its loss is found out."""
    with fake_npu.present() as machine:
        counts = noted(monkeypatch, machine)
        monkeypatch.setattr(optimizers, "angle_of", lambda distance, size: torch.tensor(distance.item()).to(NPU))
        train("newton_schulz", whip, Schedule(4, 0.1, 0.9))
        assert counts[-1] - counts[0] >= 3
        machine.waits.clear()
        mask = samples() > 0
        samples()[mask]
        assert sum(machine.waits.values()) >= 1


def test_a_return_that_nobody_waits_for_is_the_hosts() -> None:
    generator = torch.Generator().manual_seed(3)
    near = random_hadamard(16, generator).float() + 0.02 * torch.randn(16, 16, generator=generator)
    with fake_npu.present() as machine:
        found = brought_back(near.to(NPU))
        assert not machine.waits
        far = brought_back(4 * near.to(NPU))
        for _ in range(8):
            far = brought_back(far)
        assert not machine.waits
        for each in (found, far):
            assert torch.linalg.matrix_norm(each.cpu().T @ each.cpu() - torch.eye(16)) <= LOOSELY
        assert torch.linalg.matrix_norm((4 * near).T @ (4 * near) - torch.eye(16)) > STRAYED
        torch.testing.assert_close(found.cpu(), brought_back(near), rtol=0, atol=2 * LOOSELY)


def test_no_step_of_a_refinement_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer) -> None:
    counts: list[int] = []
    gradients = refinement.mean_gradients
    four = ("weights.num_bits=4", "activations.num_bits=4", "kv_cache.num_bits=4", "activations.clip_ratio=search")
    more = ("activations.centring=mean", "kv_cache.centring=both", "rotations.r4.kind=hadamard")
    recipe = jointquant.load_recipe("fp16", small(*four, *more, "refinement.steps=4", "refinement.batch_tokens=64"))
    with fake_npu.present() as machine:

        def note(loss: Tensor, parameters: list[Tensor], *others: object) -> tuple[Tensor, ...]:
            counts.append(waited(machine))
            return gradients(loss, parameters, *others)  # type: ignore[arg-type]

        monkeypatch.setattr(refinement, "mean_gradients", note)
        monkeypatch.setattr("jointquant.backend.devices.import_module", lambda name: None)
        model = make_model("llama", num_hidden_layers=2, intermediate_size=48)
        jointquant.quantize(model, tmp_path / "a", recipe, tokenizer=tokenizer, device="npu")
        assert len(counts) == 2 * 4
        for of_layer in (counts[:4], counts[4:]):
            assert of_layer[0] == of_layer[-1], machine.waits + machine.sent


@pytest.mark.parametrize("fmt", [IntFormat(4, True), IntFormat(3, False, 16)])
def test_gptq_waits_once_for_a_factor_and_never_for_a_column(fmt: IntFormat) -> None:
    with fake_npu.present() as machine:
        total = HessianSum(64, torch.device("npu:0"))
        x = torch.randn(128, 64, generator=torch.Generator().manual_seed(4)).to(NPU)
        weight = torch.randn(24, 64, generator=torch.Generator().manual_seed(5)).to(NPU)
        before = waited(machine)
        total.update(x)
        factor = factorize(total.hessian())
        assert waited(machine) - before == 1, machine.waits
        for groups in ("static", "sequential"):
            ordered = factor if groups == "static" else factorize(total.hessian(), activation_order=False)
            before = waited(machine)
            gptq(weight, ordered, fmt, groups=groups)  # type: ignore[arg-type]
            assert waited(machine) == before, machine.waits + machine.sent


def test_a_stack_waits_as_often_as_one() -> None:
    with fake_npu.present() as machine:
        x = torch.randn(5, 128, 32, generator=torch.Generator().manual_seed(6))
        hessians = [(each.T @ each).to(NPU) for each in x]
        weights = torch.randn(5, 24, 32, generator=torch.Generator().manual_seed(7)).to(NPU)
        before, calls = waited(machine), sum(machine.calls.values())
        gptq_stack(weights, factorize_stack(hessians), IntFormat(4, True))
        assert waited(machine) - before == 1
        together = sum(machine.calls.values()) - calls
        calls = sum(machine.calls.values())
        gptq(weights[0], factorize(hessians[0]), IntFormat(4, True))
        assert together < 1.5 * (sum(machine.calls.values()) - calls)


def test_a_search_for_clip_ratios_waits_once() -> None:
    def waits(batches: int) -> tuple[int, float]:
        with fake_npu.present() as machine:
            search = clip_search(DynamicRange(IntFormat(4, False)), None)
            for seed in range(batches):
                search.update(torch.randn(8, 16, generator=torch.Generator().manual_seed(seed)).to(NPU))
            best = search.best()
            return sum(machine.waits.values()), best

    assert waits(1)[0] == waits(5)[0] == 1
    on_host = clip_search(DynamicRange(IntFormat(4, False)), None)
    for seed in range(5):
        on_host.update(torch.randn(8, 16, generator=torch.Generator().manual_seed(seed)))
    assert waits(5)[1] == on_host.best()


def test_a_new_token_waits_for_nothing_but_whether_it_is_the_last(tmp_path: Path, monkeypatch, tokenizer) -> None:
    """With a packed cache, R3 and R4, and centred keys and values; that wait is transformers' own."""
    four = ("weights.num_bits=4", "weights.method=rtn", "activations.num_bits=4", "kv_cache.num_bits=4")
    more = ("rotations.r3.kind=hadamard", "rotations.r4.kind=hadamard", "kv_cache.centring=both")
    recipe = jointquant.load_recipe("fp16", small(*four, *more))
    model = make_model("llama", num_hidden_layers=2, intermediate_size=48)
    jointquant.quantize(model, tmp_path / "a", recipe, tokenizer=tokenizer)
    monkeypatch.setattr("jointquant.backend.devices.import_module", lambda name: None)
    with fake_npu.present() as machine:
        artifact = jointquant.load(tmp_path / "a", device="npu", dtype="float32")
        ids = (7 * torch.arange(1, 11)[None]).to(NPU)

        def waits(new_tokens: int) -> Counter[tuple[str, str]]:
            machine.waits.clear()
            machine.sent.clear()
            options = {"max_new_tokens": new_tokens, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
            found = artifact.generate(ids, **options, return_dict_in_generate=True)
            assert isinstance(found.past_key_values, PackedCache)
            return machine.waits + Counter({("sent", line): count for line, count in machine.sent.items()})

        more_waits = waits(6)
        more_waits.subtract(waits(2))
        assert +more_waits == Counter({("_local_scalar_dense", ""): 4})


def test_nobody_waits_for_the_layers_that_are_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From files, in the dtype that they are stored in; from ordinary memory, each tensor is waited for."""
    make_model("llama", num_hidden_layers=3, intermediate_size=48).save_pretrained(tmp_path)
    stream = open_stream(tmp_path)

    def walk() -> tuple[int, list[Tensor]]:
        before, found = waited(machine), list[Tensor]()
        for _, layer in stream.layers(Place(torch.device("npu:0"), torch.float32)):
            found += layer.state_dict().values()
        return waited(machine) - before, found

    with fake_npu.present() as machine:
        waits, tensors = walk()
        assert waits == 0, machine.waits + machine.sent
        monkeypatch.setattr("jointquant.models.stream.copied", lambda x, device: x.clone())
        ordinary, expected = walk()
        assert ordinary == len(expected) == len(tensors) > 20
        assert all(map(torch.equal, map(fake_npu.on_host, tensors), map(fake_npu.on_host, expected)))
