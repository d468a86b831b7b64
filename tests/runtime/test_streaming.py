"""An artifact as a stream: layer by layer the modules and tensors that loading it as a whole gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import jointquant
from conftest import make_model, small
from jointquant.errors import InputError
from jointquant.models.layer import Place
from jointquant.runtime.streaming import ArtifactStream, open_any_stream

PLACE = Place(torch.device("cpu"), torch.float32)


@pytest.fixture
def artifact(tmp_path: Path, tokenizer) -> Path:
    recipe = jointquant.load_recipe("rtn", small("activations.num_bits=4"))
    jointquant.quantize(make_model("llama"), tmp_path / "artifact", recipe, tokenizer=tokenizer)
    return tmp_path / "artifact"


def test_layers_are_those_of_the_loaded_artifact(artifact: Path) -> None:
    stream, loaded = open_any_stream(artifact), AutoModelForCausalLM.from_pretrained(artifact, dtype=torch.float32)
    assert isinstance(stream, ArtifactStream)
    layers = loaded.get_submodule(stream.architecture.layers)
    assert stream.num_layers == len(layers)
    for index, layer in stream.layers(PLACE):
        expected = layers[index].state_dict()
        found = layer.state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_plain_model_is_a_plain_stream(save_model) -> None:
    assert not isinstance(open_any_stream(save_model("llama")), ArtifactStream)


def test_an_artifact_without_a_tensor_is_refused(artifact: Path) -> None:
    (shard,) = artifact.glob("model-00002-of-*.safetensors")
    shard.unlink()
    with pytest.raises(InputError, match=shard.name):
        open_any_stream(artifact)
