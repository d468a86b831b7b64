"""How much the loss feels each layer."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from torch import Tensor, nn

import jointquant
from conftest import make_model
from jointquant.activations.hidden_states import HiddenStates
from jointquant.activations.propagation import Observers
from jointquant.calibration.calibrate import walk
from jointquant.calibration.sensitivity import Sensitivity
from jointquant.models.layer import Place
from jointquant.models.stream import open_stream
from jointquant.progress import Silent
from jointquant.quantization.integer import fake_quantize
from jointquant.rotations.hadamard import random_hadamard
from jointquant.run.workspace import Workspace


class Prober:
    """Hands every layer of a walk to a sensitivity measurement."""

    def __init__(self, sensitivity: Sensitivity) -> None:
        self.sensitivity = sensitivity

    def observers(self) -> Observers:
        return {}

    def before(
        self, layer: nn.Module, states: HiddenStates, arguments: dict[str, object]
    ) -> AbstractContextManager[None]:
        self.sensitivity.visit(layer, states, arguments)
        return nullcontext()

    def after(self, index: int) -> None:
        pass

    def record(self) -> dict[str, Tensor]:
        return {}

    def state(self) -> dict[str, Tensor]:
        return {}

    def restore(self, records: list[dict[str, Tensor]], state: dict[str, Tensor]) -> None:
        pass


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_sensitivity_is_that_of_the_whole_model(family: str) -> None:
    """Against the model's own forward, one layer's readers behind a quantizer in the rotated basis."""
    model = make_model(family, torch.float64)
    recipe = jointquant.load_recipe("fp16", ["activations.num_bits=4"])
    rotation = random_hadamard(48, torch.Generator().manual_seed(0))
    windows = torch.randint(0, 2048, (3, 20), generator=torch.Generator().manual_seed(1))
    stream = open_stream(model)
    sensitivity = Sensitivity(stream, recipe, rotation, place := Place(torch.device("cpu"), torch.float64))
    walk(stream, True, windows, Workspace(place), [Prober(sensitivity)], Silent())
    actual = sensitivity.finish()

    grid = recipe.activations.format
    assert grid is not None
    with torch.no_grad():
        clean = model.model(input_ids=windows).last_hidden_state
        for index, layer in enumerate(model.model.layers):
            hooks = []
            for norm in (layer.input_layernorm, layer.post_attention_layernorm):
                # the readers see x/γ in the fused model: quantize there
                def hook(_: nn.Module, __: object, x: Tensor, gamma: Tensor = norm.weight) -> Tensor:
                    return fake_quantize(x / gamma @ rotation, grid) @ rotation.T * gamma

                hooks.append(norm.register_forward_hook(hook))
            touched = model.model(input_ids=windows).last_hidden_state
            for handle in hooks:
                handle.remove()
            expected = (touched - clean).square().sum() / clean.square().sum()
            assert expected > 0
            # norms run in float32 in transformers, so a few values fall to the other side of a rounding border
            assert actual[index].item() == pytest.approx(expected.item(), rel=0.05)
