"""What waits for transformers to be imported. That artifacts then load: tests/test_pipeline.py."""

from __future__ import annotations

import importlib
import inspect
import sys
from pathlib import Path

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

import jointquant
from jointquant.models.registry import ARCHITECTURES, artifact_type
from jointquant.runtime.artifact_facts import QUANT_METHOD
from jointquant.runtime.integration import JointQuantConfig
from jointquant.runtime.registration import ENTRIES, Waiting


def test_a_module_is_found_as_ever_and_then_acted_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "awaited_module.py").write_text("value = 1\n")
    (tmp_path / "another_module.py").write_text("value = 2\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    seen: list[int] = []
    waiting = Waiting({"awaited_module": lambda: seen.append(sys.modules["awaited_module"].value)})
    monkeypatch.setattr(sys, "meta_path", [waiting, *sys.meta_path])
    assert importlib.import_module("another_module").value == 2
    assert not seen
    module = importlib.import_module("awaited_module")
    assert seen == [1]
    assert inspect.getsource(module) == "value = 1\n"
    importlib.reload(module)
    assert seen == [1, 1]
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("awaited_module.nothing")
    for name in ("awaited_module", "another_module"):
        del sys.modules[name]


def test_a_module_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "meta_path", [Waiting({"nowhere_at_all": pytest.fail}), *sys.meta_path])
    with pytest.raises(ModuleNotFoundError, match="nowhere_at_all"):
        importlib.import_module("nowhere_at_all")


def test_stand_ins_do_not_replace_what_they_stand_for() -> None:
    for register in ENTRIES.values():
        register()
    for model_type in ARCHITECTURES:
        assert CONFIG_MAPPING[artifact_type(model_type)].__module__ == JointQuantConfig.__module__
    assert AUTO_QUANTIZATION_CONFIG_MAPPING[QUANT_METHOD] is JointQuantConfig


def test_everything_that_is_offered_is_there() -> None:
    assert all(getattr(jointquant, name) is not None for name in jointquant.__all__)
    assert set(jointquant.__all__) <= set(dir(jointquant))
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        _ = jointquant.quantise
