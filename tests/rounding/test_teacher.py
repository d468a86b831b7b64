"""The unquantized model, followed beside the rounded one."""

from __future__ import annotations

import pytest
import torch

from conftest import make_model
from jointquant.models.layer import Place
from jointquant.models.stream import open_stream
from jointquant.rotations.bundle import Rotations
from jointquant.rounding.teacher import DISTANCES, Teacher, relative_error
from jointquant.run.workspace import Workspace

PLACE = Place(torch.device("cpu"), torch.float32)
WINDOWS = torch.randint(0, 2048, (6, 32), generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("merges_gains", [True, False])
@pytest.mark.parametrize("family", ["llama", "gemma2", "opt", "phi3"])
def test_the_reference_is_the_unquantized_model(family: str, merges_gains: bool) -> None:
    """Layers that give the unquantized states have no loss, behind a layer and behind the head; others have one."""
    stream = open_stream(make_model(family))
    teacher = Teacher(stream, Rotations(), merges_gains, WINDOWS, Workspace(PLACE), relative_error)
    model = make_model(family)
    with torch.no_grad():
        states = model(input_ids=WINDOWS, output_hidden_states=True).hidden_states
    chosen = torch.tensor([4, 1])
    for index in range(stream.num_layers):
        exact = teacher.states.chosen(chosen).clone()  # behind this layer
        centred = merges_gains and stream.architecture.norm.subtracts_mean
        if not centred and index + 1 < stream.num_layers:
            torch.testing.assert_close(exact, states[index + 1][chosen], rtol=1e-4, atol=1e-4)
        loss = teacher.loss_of(index)
        assert loss(exact, chosen).item() == pytest.approx(0, abs=1e-8)
        assert loss(exact.flip(-1), chosen).item() > 1e-6


def test_a_reference_that_starts_later_is_the_same() -> None:
    stream = open_stream(make_model("qwen2"))
    first = Teacher(stream, Rotations(), True, WINDOWS, Workspace(PLACE), relative_error)
    first.loss_of(0)
    first.loss_of(1)
    later = Teacher(stream, Rotations(), True, WINDOWS, Workspace(PLACE), relative_error, start=1)
    later.loss_of(1)
    everything = torch.arange(len(WINDOWS))
    assert torch.equal(first.states.chosen(everything), later.states.chosen(everything))


def test_a_token_counts_by_its_own_length() -> None:
    """However much longer a first token is, the others' errors weigh as before; squared errors see it alone."""
    generator = torch.Generator().manual_seed(0)
    exact, error = (torch.randn(4, 16, 32, dtype=torch.float64, generator=generator) for _ in range(2))
    lengths = torch.ones(16, 1, dtype=torch.float64)
    lengths[0] = 1e4
    expected = (error.square().sum(-1) / exact.square().sum(-1)).mean()
    for scale in (1.0, lengths):
        found = relative_error(scale * (exact + error), scale * exact)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
    of_first = (lengths * error)[:, 0].square().sum() / (lengths * error).square().sum()
    assert of_first > 0.999
    assert DISTANCES["squared"](lengths * (exact + error), lengths * exact) > 1e5


def test_a_token_of_zeros_has_a_finite_error_and_slope() -> None:
    states = torch.full((1, 2, 4), 0.5, requires_grad=True)
    loss = relative_error(states, torch.tensor([[[0.0] * 4, [1.0] * 4]]))
    assert loss.item() == pytest.approx((4 * 0.25 + 0.25) / 2)
    (slope,) = torch.autograd.grad(loss, states)
    assert slope.isfinite().all()
