"""The stream of layers runs as the model does."""

from __future__ import annotations

import pytest
import torch

from conftest import FAMILIES, make_model
from jointquant.models.frontend import centre_embeddings
from jointquant.models.layer import Place, run_layer
from jointquant.models.stream import open_stream
from jointquant.models.transforms import fuse_norms


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_stream_runs_as_the_model_does(family: str, fused: bool) -> None:
    """Layer by layer, with each layer's own arguments, its norms fused or not, hidden states equal the model's.

    For families with LayerNorms that is up to the mean where these are fused, and nothing reads it.
    """
    model = make_model(family)
    input_ids = torch.randint(0, 2048, (3, 20), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = model(input_ids=input_ids, output_hidden_states=True).hidden_states
    stream = open_stream(model)
    place = Place(torch.device("cpu"), torch.float32)
    frontend = stream.frontend(place)
    if fused:
        centre_embeddings(frontend, stream.architecture)
    arguments = frontend.layer_arguments(input_ids)
    hidden_states = frontend.hidden_states(input_ids)
    if fused and stream.architecture.norm.subtracts_mean:
        expected = [x - x.mean(-1, keepdim=True) for x in expected]
    for index in range(stream.num_layers):
        torch.testing.assert_close(hidden_states, expected[index], rtol=1e-4, atol=1e-4)
        layer = stream.layer(index, place)
        if fused:
            fuse_norms(layer, stream.architecture)
        with torch.no_grad():
            hidden_states = run_layer(layer, hidden_states, arguments[index])
