"""What the plugin for vLLM refuses, by the setting."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from jointquant import InputError
from jointquant.models.registry import ARCHITECTURES
from jointquant.serving.plugin_limits import FAMILIES, check_family, check_settings


def settings(**changes: Any) -> SimpleNamespace:
    """What is read of vLLM's ``VllmConfig``."""
    found = {"tensor": 1, "pipeline": 1, "cache": "auto", "lora": None, "device": "cpu", "eager": False} | changes
    return SimpleNamespace(
        parallel_config=SimpleNamespace(tensor_parallel_size=found["tensor"], pipeline_parallel_size=found["pipeline"]),
        cache_config=SimpleNamespace(cache_dtype=found["cache"]),
        lora_config=found["lora"],
        device_config=SimpleNamespace(device_type=found["device"]),
        model_config=SimpleNamespace(enforce_eager=found["eager"]),
    )


@pytest.mark.parametrize("changes", [{}, {"device": "cuda", "eager": True}, {"cache": "bfloat16"}])
def test_what_runs(changes: dict[str, Any]) -> None:
    check_settings(settings(**changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tensor": 2}, "--tensor-parallel-size 1, got 2"),
        ({"pipeline": 2}, "--pipeline-parallel-size 1, got 2"),
        ({"cache": "int4_per_token_head"}, "--kv-cache-dtype int4_per_token_head: .* expected auto"),
        ({"lora": object()}, "--enable-lora"),
        ({"device": "cuda"}, "expected --enforce-eager"),
    ],
)
def test_what_does_not_is_refused_with_the_setting(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        check_settings(settings(**changes))


def test_families() -> None:
    assert set(FAMILIES) < set(ARCHITECTURES)
    for family in FAMILIES:
        check_family(family)
        assert not ARCHITECTURES[family].latent_sites
        assert ARCHITECTURES[family].wrapper is None
    for family in ("deepseek_v3", "gpt_oss", None):
        with pytest.raises(InputError, match=r"expected one of .*llama.*, or an export"):
            check_family(family)
