"""Devices and their names."""

from __future__ import annotations

import pytest
import torch

from jointquant.backend import devices
from jointquant.backend.devices import resolve_device, resolve_dtype
from jointquant.backend.operations import HOST
from jointquant.errors import InputError
from jointquant.planning import doctor

HOSTILE = (
    *("", " ", "cpu ", "CPU", "cpu:1", "cpu:-1", "cpu:128", "meta", "mkldnn", "vulkan:3", "privateuseone", "hpu"),
    *("cuda:99", "cuda:-1", "cuda:0:1", "cuda:01:", "cuda:0\n", "cuda:99999999999999999999", "xpu:7", "mps:9"),
    *("\0", "../../dev", "auto:0", "x" * 5000, "npu:0", "npu"),
)


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: repr(name[:20]))
def test_hostile_names_are_refused_in_one_line(name: str) -> None:
    with pytest.raises(InputError) as error:
        resolve_device(name)
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 400
    assert "expected" in message or "this machine has" in message


def test_the_host_has_one_name() -> None:
    assert resolve_device("cpu") == resolve_device("cpu:0") == HOST


def test_an_npu_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise ImportError("libhccl.so:\n cannot open")

    monkeypatch.setattr(devices, "import_module", broken)
    with pytest.raises(InputError, match=r"torch_npu cannot be imported \(libhccl.so: cannot open\)"):
        resolve_device("npu:0")
    resolve_device("auto")  # not installed here: not looked for
    monkeypatch.setattr(devices, "find_spec", lambda name: object())
    with pytest.raises(InputError, match="torch_npu"):
        resolve_device("auto")
    assert resolve_device("cpu") == HOST
    findings = doctor.examine()
    assert "torch_npu" in findings["problem"]
    assert list(findings["devices"]) == ["cpu"]


def test_dtypes_that_a_device_lacks_are_refused() -> None:
    with pytest.raises(InputError, match="float64 is not for mps"):
        resolve_dtype("float64", torch.device("mps"), torch.float32)
    with pytest.raises(InputError, match="float64 is not for mps"):
        resolve_dtype("auto", torch.device("mps"), torch.float64)
    assert resolve_dtype("float64", HOST, torch.float32) == torch.float64
