"""What models make of their heads' outputs: the same logits from a model in memory and from one that is streamed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from conftest import make_model
from jointquant.evaluation.streaming import streamed_logits
from jointquant.models.layer import Place
from jointquant.models.logits import Capped, Divided, Multiplied, Unchanged
from jointquant.models.stream import open_stream
from jointquant.progress import Silent
from jointquant.run.workspace import Workspace

IDS = torch.randint(0, 2048, (1, 12), generator=torch.Generator().manual_seed(3))
PLACE = Place(torch.device("cpu"), torch.float32)


def streamed(model: PreTrainedModel) -> Tensor:
    with torch.no_grad(), streamed_logits(open_stream(model), IDS, Workspace(PLACE), Silent(), "t") as (logits, _):
        return logits(IDS)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_streamed_logits_are_the_models_own(family: str) -> None:
    model = make_model(family)
    with torch.no_grad():
        expected = model(input_ids=IDS).logits
    torch.testing.assert_close(streamed(model), expected, rtol=1e-4, atol=1e-4)


def test_each_kind() -> None:
    config, x = make_model("gemma2").config, torch.tensor([-9.0, 0.5, 9.0])
    config.some = 4.0
    assert torch.equal(Unchanged().of(config)(x), x)
    assert torch.equal(Capped("some").of(config)(x), 4 * torch.tanh(x / 4))
    assert torch.equal(Capped("none").of(config)(x), x)
    assert torch.equal(Divided("some").of(config)(x), x / 4)
    assert torch.equal(Multiplied("some").of(config)(x), x * 4)
