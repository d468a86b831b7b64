"""Tokens that rotations are learned on: seeded, of a known number, any of them."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from jointquant.rotations.sampling import DrawnTokens, TokenSample


def heavy_tailed(*shape: int, seed: int = 0) -> Tensor:
    """Correlated activations with outlier channels, of unit RMS per token."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=generator)
    x = x * torch.exp(1.5 * torch.randn(shape[-1], generator=generator))
    return x / x.square().mean(-1, keepdim=True).sqrt()


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_samples_are_seeded_and_sized() -> None:
    x = heavy_tailed(4, 50, 8)
    samples = []
    for seed in (0, 0, 1):
        sample = TokenSample(0.1, rng(seed))
        sample.update(x)
        samples.append(sample.take())
    assert samples[0].shape == (20, 8)
    assert torch.equal(samples[0], samples[1])
    assert not torch.equal(samples[0], samples[2])
    rows = {tuple(row.tolist()) for row in x.reshape(-1, 8)}
    assert all(tuple(row.tolist()) in rows for row in samples[0])
    assert len({tuple(row.tolist()) for row in samples[0]}) == 20


def test_every_token_can_be_sampled() -> None:
    """A sampler that ignores part of its input is the trap: over seeds, every token turns up."""
    x = torch.arange(40.0).reshape(40, 1)
    seen: set[float] = set()
    for seed in range(60):
        sample = TokenSample(0.2, rng(seed))
        sample.update(x)
        seen.update(sample.take().flatten().tolist())
    assert len(seen) == 40


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(cut=st.integers(1, 199), share=st.floats(0.05, 1.0), seed=st.integers(0, 9))
def test_the_same_tokens_however_they_come(cut: int, share: float, seed: int) -> None:
    x = torch.randn(200, 6, generator=seeded(seed))
    whole, parts = DrawnTokens(share, seed), DrawnTokens(share, seed)
    whole.update(x)
    for part in (x[cut:], x[:cut]):
        parts.update(part.unsqueeze(0))
    found, same = whole.take(), parts.take()
    assert (found is None and same is None) or torch.equal(found, same)


def test_about_as_many_tokens_as_asked_for_and_others_with_another_seed() -> None:
    x = torch.randn(20000, 5, generator=seeded())
    kept = {}
    for seed in (0, 1):
        drawn = DrawnTokens(0.1, seed)
        drawn.update(x)
        kept[seed] = drawn.take()
        assert 1800 < len(kept[seed]) < 2200
    assert len(torch.unique(torch.cat([kept[0], kept[1]]), dim=0)) > 3500
    everything = DrawnTokens(3.0, 0)
    everything.update(x)
    assert len(everything.take()) == 20000
    assert DrawnTokens(1.0, 0).take() is None
