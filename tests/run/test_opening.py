"""The model of a run: found, opened, and not overwritten by its own output."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from conftest import make_model
from jointquant.errors import InputError
from jointquant.progress import Silent
from jointquant.run.opening import check_architecture, check_not_input, open_subject


def test_a_folder_becomes_a_stream_and_its_tokenizer(save_model) -> None:
    subject = open_subject(save_model("llama"), None, Silent(), {"device": "cpu", "dtype": "float32"})
    assert subject.stream.num_layers == 3
    assert subject.place.dtype == torch.float32
    assert len(subject.tokenizer) == 2048


def test_a_model_in_memory_needs_its_tokenizer(tokenizer) -> None:
    model = make_model("llama")
    with pytest.raises(InputError, match="tokenizer"):
        open_subject(model, None, Silent(), {})
    assert open_subject(model, tokenizer, Silent(), {}).origin is None


def test_output_does_not_go_into_the_model(save_model, tmp_path: Path) -> None:
    folder = save_model("llama")
    subject = open_subject(folder, None, Silent(), {})
    check_not_input(tmp_path / "out", subject)
    for out in (folder, folder / "out", tmp_path):
        with pytest.raises(InputError):
            check_not_input(out, subject)


def test_an_unknown_family_is_refused_by_its_configuration_alone(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(InputError, match="gpt2"):
        check_architecture(tmp_path)
