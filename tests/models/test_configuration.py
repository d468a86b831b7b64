"""Configurations: sizes that no model has are refused before anything is built."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import DEMO
from jointquant.errors import InputError
from jointquant.models.configuration import blamed, check_sizes, empty_model, read_config


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"hidden_size": 0}, "hidden_size is '0', expected a whole number"),
        ({"hidden_size": 1 << 40}, "expected a whole number from 1 to 262144"),
        ({"vocab_size": 32.5}, "vocab_size"),
        ({"num_hidden_layers": True}, "num_hidden_layers is 'True'"),
        ({"num_experts": 4096, "num_hidden_layers": 4096}, "4096 experts in 4096 layers"),
        ({"rms_norm_eps": -1e-6}, "expected a positive number"),
    ],
)
def test_sizes_that_are_none(data: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_sizes(data, Path("config.json"))


def test_an_empty_model_holds_no_values() -> None:
    model = empty_model(read_config(DEMO / "model"))
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert not model.training


def test_code_of_a_folder_is_named_and_not_run(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mine", "auto_map": {"AutoConfig": "code.Mine"}}))
    (tmp_path / "code.py").write_text("raise SystemExit")
    with pytest.raises(InputError, match="names code of its own"):
        read_config(tmp_path)


def test_a_name_that_transformers_lacks_has_a_like_family(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "kimi_k2", "auto_map": {"AutoConfig": "a.B"}}))
    with pytest.raises(InputError, match="expected 'deepseek_v3' as model_type"):
        read_config(tmp_path)


def test_a_librarys_failure_is_the_inputs_fault_and_want_of_memory_is_not() -> None:
    with pytest.raises(InputError, match="no such model: KeyError: 'a'"), blamed("no such model"):
        raise KeyError("a")
    with pytest.raises(torch.OutOfMemoryError), blamed("no such model"):
        raise torch.OutOfMemoryError
