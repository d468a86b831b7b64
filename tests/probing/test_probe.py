"""Families that are known are found as they are described; of others, what is found holds or is said not to."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoConfig, PretrainedConfig

import jointquant
from conftest import COMMON, SPECIAL
from jointquant.cli.main import main
from jointquant.models.architecture import Architecture
from jointquant.models.registry import ARCHITECTURES
from jointquant.probing.probe import probe_of
from jointquant.probing.trial import TOLERANCE

KNOWN = (
    "cohere2",
    "gemma2",
    "glm4",
    "granite",
    "llama",
    "mixtral",
    "olmo2",
    "opt",
    "phi3",
    "qwen2_moe",
    "qwen3",
    "starcoder2",
)


def config_of(family: str, **changes: object) -> PretrainedConfig:
    settings = COMMON | SPECIAL.get(family, {}) | changes
    return AutoConfig.for_model(family, **{key: value for key, value in settings.items() if value is not None})


def described(text: str) -> Architecture:
    """The architecture that a file describes."""
    names: dict[str, Architecture] = {}
    exec(text, names)
    return names["ARCHITECTURE"]


@pytest.mark.parametrize("family", KNOWN)
def test_a_known_family_is_found_as_it_is_described(family: str) -> None:
    found, known = probe_of(config_of(family)), replace(ARCHITECTURES[family], requirements=())
    architecture = described(found.file)
    if known.mixture is not None and architecture.mixture is not None:
        stored = {"stored_block": known.mixture.stored_block, "stored_projections": known.mixture.stored_projections}
        architecture = replace(architecture, mixture=replace(architecture.mixture, **stored))
    assert architecture == known
    exact = {"norms fused", "R2", *([] if known.writer_norms else ["R1"])}
    assert set(found.holds) == exact
    assert found.known
    assert all(error < TOLERANCE for name, error in found.errors.items() if name in exact)


def test_an_unknown_family_gets_a_file_that_holds() -> None:
    found = probe_of(config_of("seed_oss", head_dim=16))
    assert not found.known
    assert set(found.holds) == {"norms fused", "R1", "R2"}
    assert described(found.file) == replace(ARCHITECTURES["llama"], model_type="seed_oss")
    assert json.loads(found.tiny)["num_hidden_layers"] == 3


def test_norms_inside_are_said_to_be_beyond_the_data() -> None:
    found = probe_of(config_of("bitnet"))
    assert any("not described" in doubt for doubt in found.doubts)
    assert not found.errors


def test_a_wrong_description_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms whose weight is a difference from 1, taken for plain ones, move the logits."""
    from jointquant.models.norms import RMSNorm
    from jointquant.probing import findings

    monkeypatch.setattr(findings, "norm_kind", lambda *_: RMSNorm())
    found = probe_of(config_of("gemma2"))
    assert found.errors["norms fused"] > 1e-3
    assert "norms fused" not in found.holds


def test_the_verb(tmp_path: Path, capsys) -> None:
    config_of("llama").save_pretrained(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(["probe", str(tmp_path / "config.json")])
    assert end.value.code == 0
    printed = capsys.readouterr().out
    assert "# src/jointquant/models/llama.py (there is one already)" in printed
    assert "# R1: exact" in printed


def test_a_model_around_a_text_model_is_refused() -> None:
    with pytest.raises(jointquant.InputError, match="expected the configuration of a text model"):
        probe_of(AutoConfig.for_model("llava"))
