"""Memory that devices copy from by themselves: asked for where there is such a device, and not missed."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

from jointquant.backend import page_locked
from jointquant.backend.page_locked import copied, placed

CUDA = torch.device("cuda")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What was to be page-locked; nothing was refused before."""
    found: list[Tensor] = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda x: found.append(x) or x.clone())
    monkeypatch.setattr(page_locked, "_refused", [])
    return found


@pytest.mark.parametrize(("device", "locked"), [("cuda", True), ("npu", True), ("mps", False), ("cpu", False)])
def test_devices_that_read_it(device: str, locked: bool, asked: list[Tensor]) -> None:
    x = torch.arange(12.0).view(3, 4)[:, 1:]
    copy = copied(x, type("Device", (), {"type": device}))  # type: ignore[arg-type]
    assert torch.equal(copy, x)
    assert copy.data_ptr() != x.data_ptr()
    assert bool(asked) == locked


def test_nothing_is_locked_of_nothing(asked: list[Tensor]) -> None:
    assert copied(torch.empty(0, 3), CUDA).shape == (0, 3)
    assert asked == []


def test_a_machine_without_it_is_asked_once(asked: list[Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(x: Tensor) -> Tensor:
        asked.append(x)
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(Tensor, "pin_memory", refuse)
    x = torch.arange(4.0)
    with pytest.warns(UserWarning, match="no page-locked memory for cuda, .*out of memory"):
        assert torch.equal(copied(x, CUDA), x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(copied(x, CUDA), x)
    assert len(asked) == 1


def test_a_copy_to_the_host_itself_is_none() -> None:
    x = torch.arange(4.0)
    assert placed(x, x.device, x.dtype) is x
    assert placed(x, x.device, torch.bfloat16).dtype == torch.bfloat16
