"""The result of a run: a run that was killed while it cleared up reads it back from JSON."""

from __future__ import annotations

import json

from jointquant.artifact.result import QuantizeResult

RESULT = QuantizeResult(
    artifact="out",
    seconds=1.5,
    stage_seconds={"prepare": 0.5, "quantize": 1.0},
    peak_rss_bytes=1 << 30,
    size_bytes=1000,
    original_bytes=4000,
    bits_per_weight=4.07,
    transforms={"r1": "none"},
    tier=1,
    runtimes=["vLLM"],
    quantized_weights=48,
    kept=[{"name": "model.norm.weight", "parameters": 48, "why": "norm"}],
    starved_experts=[{"layer": 0, "expert": 1, "tokens": 2}],
    resumed=True,
)


def test_json_and_back() -> None:
    assert QuantizeResult(**json.loads(json.dumps(RESULT.to_dict()))) == RESULT
