"""What a recipe leaves to the model."""

from __future__ import annotations

import logging

import pytest
from transformers import LlamaConfig, PretrainedConfig

import jointquant
from jointquant.errors import InputError
from jointquant.run.fitting import fitted, window_length


@pytest.mark.parametrize(
    ("positions", "asked", "length"),
    [
        (512, None, 512),
        (2048, None, 2048),
        (131072, None, 2048),
        (131072, 4096, 4096),
        (512, 64, 64),
        (None, None, 2048),
    ],
)
def test_the_length_of_a_window(positions: int | None, asked: int | None, length: int) -> None:
    config = PretrainedConfig(max_position_embeddings=positions)
    assert window_length(config, asked) == length
    recipe = jointquant.load_recipe("rtn", [] if asked is None else [f"calibration.seqlen={asked}"])
    assert fitted(recipe, config).calibration.window == length
    assert jointquant.load_recipe(fitted(recipe, config)) == fitted(recipe, config)


def test_a_head_becomes_a_group_of_its_channels() -> None:
    config = LlamaConfig(hidden_size=96, num_attention_heads=4)
    recipe = fitted(jointquant.load_recipe("dartquant-paper-70b"), config)
    output, down, other = (
        recipe.activations_of(f"model.layers.0.{name}") for name in ("o_proj", "down_proj", "q_proj")
    )
    assert (output.strategy, output.group_size, output.num_bits) == ("group", 24, 4)
    assert (down.strategy, down.group_size, down.num_bits) == ("token", None, 8)
    assert (other.strategy, other.group_size, other.num_bits) == ("token", None, 4)
    everywhere = fitted(jointquant.load_recipe("rtn", ["activations.strategy=head"]), config).activations
    assert (everywhere.strategy, everywhere.group_size) == ("group", 24)


def test_what_is_asked_for_is_not_made_shorter() -> None:
    recipe = jointquant.load_recipe("rtn", ["calibration.seqlen=513"])
    with pytest.raises(InputError, match="seqlen 513 is longer than the model's 512 positions"):
        fitted(recipe, LlamaConfig(max_position_embeddings=512))


def test_a_shorter_default_is_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "jointquant")
    for positions, asked in ((4096, []), (512, ["calibration.seqlen=512"])):
        fitted(jointquant.load_recipe("rtn", asked), LlamaConfig(max_position_embeddings=positions))
    assert not caplog.messages
    fitted(jointquant.load_recipe("rtn"), LlamaConfig(max_position_embeddings=512))
    assert caplog.messages == ["calibration windows have 512 tokens, all that the model reads (`seqlen`)"]
