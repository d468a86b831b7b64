"""Inputs and caches in training have the values that they have without, and gradients pass them."""

from __future__ import annotations

import torch

from jointquant.quantization.integer import IntFormat
from jointquant.quantization.ranges import CLIP_RATIO, DynamicRange, SearchedRange
from jointquant.rounding.in_training import TrainedInput, passable_path
from jointquant.runtime.input_path import INPUT_MEAN, InputPath

FMT = IntFormat(4, False, None)
PATH = InputPath(quantizer=SearchedRange(FMT), centred=True)


def buffers() -> dict[str, torch.Tensor]:
    return {CLIP_RATIO: torch.tensor(0.8), INPUT_MEAN: torch.linspace(-1, 1, 6)}


def test_what_is_learned_gets_a_gradient_and_the_rest_does_not() -> None:
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    for learn in ((), (CLIP_RATIO,), (CLIP_RATIO, INPUT_MEAN)):
        shared, given = TrainedInput(PATH, buffers(), learn), x.clone().requires_grad_()
        read = shared.read(given)
        assert torch.allclose(read, PATH(x, buffers()), atol=1e-6)
        read.square().sum().backward()
        assert set(shared.learned) == set(learn)
        assert all(each.grad is not None and each.grad.abs().max() > 0 for each in shared.learned.values())
        assert given.grad is not None


def test_one_tensor_is_read_once_until_it_is_forgotten() -> None:
    shared, x = TrainedInput(PATH, buffers()), torch.randn(3, 6)
    first = shared.read(x)
    assert shared.read(x) is first
    assert shared.read(x.clone()) is not first
    again = shared.read(x)
    shared.forget()
    assert shared.read(x) is not again


def test_the_buffers_that_were_given_stay_as_they_are() -> None:
    given = buffers()
    shared = TrainedInput(PATH, given)
    with torch.no_grad():
        shared.learned[CLIP_RATIO].fill_(0.5)
    assert given[CLIP_RATIO] == 0.8


def test_a_path_without_a_quantizer_has_none_in_training() -> None:
    assert passable_path(InputPath()) == InputPath()
    assert passable_path(InputPath(quantizer=DynamicRange(FMT))).quantizer is not None
