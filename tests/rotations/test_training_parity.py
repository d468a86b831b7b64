"""Training as DartQuant's scripts do it, against plain NumPy and torch: Adam, accumulation, a growing set."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from jointquant.rotations.accumulation import averaged
from jointquant.rotations.learning import INITS, Training, learn, unit_scale
from jointquant.rotations.objectives import OBJECTIVES, whip
from jointquant.rotations.optimizers import OPTIMIZERS, RotationProblem, Schedule
from jointquant.seeds import growing_rounds, rounds

SIZE, RATE, STEPS = 6, 0.05, 8


def samples(tokens: int = 48) -> torch.Tensor:
    x = torch.from_numpy(np.random.default_rng(0).standard_t(4, (tokens, SIZE)))
    return x * unit_scale(x)


def start() -> torch.Tensor:
    return INITS["random"](SIZE, torch.Generator().manual_seed(3))


def factor(latent: np.ndarray) -> np.ndarray:
    q, r = np.linalg.qr(latent)
    return q * np.sign(np.diag(r))


def slope_by_differences(x: np.ndarray, latent: np.ndarray) -> np.ndarray:
    """The gradient of Whip of x·qr(Z).Q by Z, each entry by a central difference."""

    def loss(z: np.ndarray) -> float:
        return float(np.exp(-np.abs(x @ factor(z))).sum(1).mean())

    gradient = np.empty_like(latent)
    for place in np.ndindex(*latent.shape):
        step = np.zeros_like(latent)
        step[place] = 1e-6
        gradient[place] = (loss(latent + step) - loss(latent - step)) / 2e-6
    return gradient


def test_adam() -> None:
    """Kingma and Ba, algorithm 1, in NumPy; a rate of η for each entry is ours of η·√n, and decays as a cosine."""
    x, latent = samples().numpy(), start().numpy().copy()
    first, second = np.zeros_like(latent), np.zeros_like(latent)
    for step in range(1, STEPS + 1):
        gradient = slope_by_differences(x, latent)
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        rate = RATE * 0.5 * (1 + np.cos(np.pi * (step - 1) / STEPS))
        latent -= rate * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
    training = Training(whip, OPTIMIZERS["qr_adam"], Schedule(STEPS, RATE * SIZE**0.5, 0.9), 1000)
    learned = learn(samples(), start(), training, torch.Generator())
    np.testing.assert_allclose(learned.rotation.numpy(), factor(latent), atol=1e-4)
    assert not np.allclose(factor(latent), start().numpy(), atol=0.05)


def by_hand(batches: list[torch.Tensor], count: int) -> torch.Tensor:
    """QR-Orth with gradients of ``count`` batches summed as a training loop does it: loss / count, backward, step."""
    latent = start().requires_grad_()
    optimizer = torch.optim.SGD([latent], lr=1.0, momentum=0.9)
    steps = len(batches) // count
    for index, batch in enumerate(batches):
        q, r = torch.linalg.qr(latent)
        rotation = q * r.diagonal().sign()
        (torch.exp(-(batch @ rotation).abs()).sum(-1).mean() / count).backward()
        if (index + 1) % count == 0:
            optimizer.param_groups[0]["lr"] = 0.5 * (1 + np.cos(np.pi * (index // count) / steps))
            optimizer.step()
            optimizer.zero_grad()
    return factor(latent.detach().numpy())


def test_accumulation() -> None:
    x, order = samples(), rounds(48, 8, torch.Generator().manual_seed(7))
    wanted = by_hand([x[next(order)] for _ in range(12)], 3)
    training = Training(whip, OPTIMIZERS["qr"], Schedule(4, 1.0, 0.9), 8, accumulation=3)
    learned = learn(x, start(), training, torch.Generator().manual_seed(7))
    np.testing.assert_allclose(learned.rotation.numpy(), wanted, atol=1e-10)
    assert len(learned.losses) == 4


@pytest.mark.parametrize("name", ["whip", "range", "swd", "bin_kl"])
def test_an_average_of_batches(name: str) -> None:
    """Loss, gradient by the graph and product in closed form are means over the batches, matrix by matrix."""
    x = torch.stack([samples(), samples().flip(0) * 2])
    objective = OBJECTIVES[name](None)
    places = iter([batch for _ in range(2) for batch in x.split(12, dim=-2)])
    problem = RotationProblem(lambda r, _: objective(next(places) @ r), torch.ones(()))
    leaf = torch.stack([start(), start().T]).requires_grad_()
    loss = averaged(problem, 4).loss(leaf, 0)
    (gradient,) = torch.autograd.grad(loss @ torch.tensor([1.0, 3.0]).double(), leaf)
    each = [objective(batch @ leaf) for batch in x.split(12, dim=-2)]
    wanted = torch.stack(each).mean(0)
    (slope,) = torch.autograd.grad(wanted @ torch.tensor([1.0, 3.0]).double(), leaf)
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close(gradient, slope)
    assert averaged(problem, 1) is problem


@pytest.mark.parametrize("optimizer", ["newton_schulz", "cayley", "qr_adam"])
def test_every_optimiser_accumulates(optimizer: str) -> None:
    """Two halves a step are the whole a step."""
    x = samples()
    halves = Training(whip, OPTIMIZERS[optimizer], Schedule(5, 0.2, 0.85), 24, accumulation=2)
    whole = Training(whip, OPTIMIZERS[optimizer], Schedule(5, 0.2, 0.85), 48)
    found = [learn(x, start(), each, torch.Generator().manual_seed(1)).rotation for each in (halves, whole)]
    torch.testing.assert_close(*found, atol=1e-6, rtol=0)


def test_a_random_start_is_drawn_from_all_rotations() -> None:
    """Orthogonal, another one each time, and with entries whose moments are those of the Haar measure."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([INITS["random"](SIZE, generator) for _ in range(4000)])
    torch.testing.assert_close(drawn.mT @ drawn, torch.eye(SIZE).double().expand_as(drawn))
    assert drawn.mean(0).abs().max() < 0.03
    torch.testing.assert_close(drawn.square().mean(0), torch.full((SIZE, SIZE), 1 / SIZE).double(), atol=0.02, rtol=0)
    fourth = 3 / (SIZE * (SIZE + 2))  # of one coordinate of a point on the sphere
    torch.testing.assert_close(drawn.pow(4).mean(), torch.tensor(fourth).double(), atol=2e-3, rtol=0)
    assert abs(drawn.diagonal(dim1=-2, dim2=-1).sum(-1).mean()) < 0.06


def test_a_set_that_grows() -> None:
    """Batches know a tenth at first and all at the end; each round sees what it knows once."""
    drawn = list(zip(range(100), growing_rounds(1000, 50, 0.1, 100, torch.Generator().manual_seed(0)), strict=False))
    seen = [set(batch.tolist()) for _, batch in drawn]
    assert len(seen[0] | seen[1]) == 100
    assert not seen[0] & seen[1]
    known, sizes = set(), []
    for batch in seen:
        known |= batch
        sizes.append(len(known))
    assert sizes[9] < 250
    assert sizes[-1] > 800
    assert sizes[9] < sizes[39] < sizes[79]
    small = growing_rounds(1000, 400, 0.1, 10, torch.Generator().manual_seed(0))
    assert len(next(small)) == 100, "a batch is no more than is known"


def test_training_on_a_set_that_grows_sees_it_grow() -> None:
    x = samples(400)
    seen: list[int] = []

    def watched(y: torch.Tensor) -> torch.Tensor:
        seen.append(y.shape[-2])
        return whip(y)

    training = Training(watched, OPTIMIZERS["qr"], Schedule(6, 0.5, 0.9), 1000, first_share=0.25)
    learn(x, start(), training, torch.Generator().manual_seed(0))
    batches = seen[-8:-2]  # behind them, the end and the start are judged
    assert (batches[0], batches[-1]) == (100, 400)
    assert batches == sorted(batches)
