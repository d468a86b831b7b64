"""Published configurations, at their full sizes: each gives a plan, and has as many parameters as was published."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import PretrainedConfig, PreTrainedModel

import jointquant
from jointquant.models.architecture import Architecture
from jointquant.models.configuration import read_config_file
from jointquant.models.registry import ARCHITECTURES
from jointquant.planning import dry_run
from jointquant.planning.shape import model_of

CONFIGS = Path(__file__).parents[1] / "models" / "configs"

PARAMETERS = {
    "DeepSeek-V2-Lite": 15_706_484_224,
    "GLM-4.5-Air": 106_852_251_264,
    "GLM-4.7-Flash": 29_943_393_920,
    "Gemma-2-9B": 9_241_705_984,
    "Gemma-3-27B": 27_432_406_640,
    "Llama-3.1-70B": 70_553_706_496,
    "Llama-3.1-8B": 8_030_261_248,
    "Mistral-Small-3.1-24B": 24_011_361_280,
    "Mixtral-8x7B": 46_702_792_704,
    "Moonlight-16B-A3B": 15_960_110_208,
    "Phi-4": 14_659_507_200,
    "Qwen2.5-VL-7B": 8_292_166_656,
    "Qwen3-30B-A3B": 30_532_122_624,
    "Qwen3-32B": 32_762_123_264,
    "Qwen3-8B": 8_190_735_360,
    "Qwen3-VL-8B": 8_767_123_696,
    "SmolLM3-3B": 3_075_098_624,
    "gpt-oss-20b-BF16": 20_914_757_184,
}
"""Numbers of the published weights; a matrix that is tied counts once."""


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_published_configuration_has_a_plan(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []

    def counting(config: PretrainedConfig) -> tuple[PreTrainedModel, Architecture]:
        model, architecture = model_of(config)
        head = model.get_submodule(architecture.head).weight.numel() if config.tie_word_embeddings else 0
        counts.append(sum(tensor.numel() for tensor in model.state_dict().values()) - head)
        return model, architecture

    monkeypatch.setattr(dry_run, "model_of", counting)
    path = CONFIGS / f"{name}.json"
    family = ARCHITECTURES[read_config_file(path).model_type]
    changes = ["rotations.r1.kind=none"] if family.writer_norms else []
    recipe = jointquant.load_recipe("quarot", changes)
    found = jointquant.dry_run(path, recipe, memory_budget="256GB", device_budget="80GB")
    assert counts == [PARAMETERS[name]]
    assert found.plan.device_peak <= 80e9
    assert found.plan.disk["artifact"] < counts[0]  # of four bits a weight, and ends of sixteen


def test_every_configuration_is_tested() -> None:
    assert {path.stem for path in CONFIGS.glob("*.json")} == set(PARAMETERS)
