"""What doctor finds."""

from __future__ import annotations

import json

import torch

from jointquant.backend.operations import OPERATIONS
from jointquant.planning import doctor


def test_doctor_measures_the_host() -> None:
    findings = doctor.examine()
    assert json.loads(json.dumps(findings)) == findings
    host = findings["devices"]["cpu"]
    assert host["dtypes"] == dict.fromkeys(("float32", "bfloat16", "float16", "float64"), True)
    assert host["operations"] == {name: {"works": True, "runs_on": "cpu"} for name in OPERATIONS}
    assert host["hadamard_error"] < 1e-4
    assert host["memory_bytes"] > host["memory_free_bytes"] > 0
    assert all(speed > 0 for speed in host["gflops"].values())
    rows = dict(doctor.in_words(findings))
    assert "works here" in rows["cpu qr"]
    assert "packed_rows" in rows["integer products on the cpu"]
    assert set(findings["extras"]) == {"lm-eval", "modelscope", "triton", "torch-npu"}


def test_doctor_says_what_fails() -> None:
    """The meta device holds no data: whatever is tried on it fails, and that is said."""
    found = doctor.examine_device(torch.device("meta"))
    assert not any(found["dtypes"].values())
    assert not any(operation["works"] for operation in found["operations"].values())
    assert found["hadamard_error"] is None
    assert found["gflops"] == {}


def test_a_slow_product_is_not_said_to_have_no_speed() -> None:
    assert [doctor.in_gflops(speed) for speed in (0.034, 0.9, 7.25, 12.4, 56_000)] == [
        "0.034 GFLOP/s", "0.9 GFLOP/s", "7.2 GFLOP/s", "12 GFLOP/s", "56000 GFLOP/s",
    ]  # fmt: skip
