"""What is said of vLLM by an export's configuration."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jointquant.export.vllm_options import is_for_vllm_alone, vllm_options

CACHE = {"num_bits": 4, "scheme": "int4_per_token_head"}


@pytest.mark.parametrize(
    ("config", "options", "alone"),
    [
        ({}, (), False),
        ({"jointquant": 3}, (), False),
        ({"jointquant": {"recipe": {"kv_cache": {"num_bits": 4}}}}, (), False),
        ({"jointquant": {"recipe": {"kv_cache": CACHE | {"num_bits": 16}}}}, (), False),
        ({"jointquant": {"recipe": {"kv_cache": CACHE}}}, ("--kv-cache-dtype", "int4_per_token_head"), False),
        ({"attn_implementation": "none: why"}, (), True),
        ({"quantization_config": {"transform_config": {}}}, (), False),
        ({"quantization_config": {"transform_config": {"config_groups": {"R4": {}}}}}, (), True),
    ],
)
def test_what_a_configuration_says(tmp_path: Path, config: dict[str, object], options: object, alone: bool) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert (vllm_options(tmp_path), is_for_vllm_alone(tmp_path)) == (options, alone)
