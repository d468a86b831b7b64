"""SmoothQuant: which channels get which scale. That the function stays is in models/test_transforms.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import jointquant
from conftest import FAMILIES, make_job, make_model, possible, small
from jointquant.activations.propagation import watching
from jointquant.activations.routing import experts_of
from jointquant.calibration.calibrate import calibrate
from jointquant.errors import InputError
from jointquant.models.layer import Place, run_layer
from jointquant.models.scaling import scale_sites
from jointquant.models.stream import open_stream
from jointquant.quantization.smoothing import MEASURES, smoothing_scales
from jointquant.rotations.bundle import Rotations

PLACE = Place(torch.device("cpu"), torch.float64)
WINDOWS = torch.randint(0, 2048, (3, 16), generator=torch.Generator().manual_seed(5))


def calibrated(family: str, *changes: str):
    stream = open_stream(make_model(family, torch.float64))
    recipe = jointquant.load_recipe("fp16", small(*changes))
    return stream, calibrate(make_job(stream, recipe, WINDOWS, PLACE))


def measured(stream, rotations: Rotations, measure: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Of layer 0, which keeps its gains, once its sites are scaled: |X_j| and |W_j| by site."""
    layer = stream.layer(0, PLACE)
    scale_sites(layer, stream.architecture, rotations.scales_of(0))
    frontend = stream.frontend(PLACE)
    sites = stream.architecture_of(0).whole_sites
    known = MEASURES[measure]
    seen = {site.name: known.inputs() for site in sites}
    observers = {site.readers[0]: seen[site.name].update for site in sites}
    experts = experts_of(layer)
    if experts is not None:  # with as few windows, none of them sees enough of its own
        experts.open_to_all = frozenset(range(len(experts)))
    with torch.no_grad(), watching(layer, observers):
        run_layer(layer, frontend.hidden_states(WINDOWS), frontend.layer_arguments(WINDOWS)[0])
    return {
        site.name: (
            seen[site.name].sizes(),
            known.norm(torch.cat([layer.get_submodule(name).weight for name in site.linears]), 0),
        )
        for site in sites
    }


def per_group(x: Tensor, stream, measure: str) -> Tensor:
    heads = x.unflatten(0, (stream.num_key_value_heads, -1, stream.head_dim))
    return (heads.amax(1) if measure == "max" else heads.square().sum(1).sqrt()).flatten()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("alpha", "measure"), [(0.5, "max"), (0.8, "max"), (0.5, "rms")])
def test_channel_sizes_move_as_the_formula_says(family: str, alpha: float, measure: str) -> None:
    """s splits |X_j| · |W_j| =: P, which no scale changes, into P^(1−α) and P^α."""
    stream, rotations = calibrated(family, f"smoothing={{alpha: {alpha}, measure: {measure}}}")
    sites = {site.partition(".")[0] for site in rotations.scales_of(0)}
    assert sites == {"attn_in", "o_in", "mlp_in", "down_in"}
    for name, (x, w) in measured(stream, rotations, measure).items():
        if name == "o_in":
            x, w = per_group(x, stream, measure), per_group(w, stream, measure)
        product = x * w
        alive = product > 0
        torch.testing.assert_close(x[alive], product[alive] ** (1 - alpha), rtol=1e-6, atol=0)
        torch.testing.assert_close(w[alive], product[alive] ** alpha, rtol=1e-6, atol=0)


def test_with_r1_the_sites_behind_norms_are_left_alone() -> None:
    _, rotations = calibrated("llama", "smoothing.alpha=0.5", "rotations.r1.kind=hadamard")
    assert set(rotations.scales_of(0)) == {"o_in", "down_in"}
    assert len(rotations.scales) == 3


def test_dead_channels_keep_the_scale_one() -> None:
    scales = smoothing_scales(torch.tensor([0.0, 4.0, 9.0]), torch.tensor([1.0, 0.0, 4.0]), 0.5)
    torch.testing.assert_close(scales, torch.tensor([1.0, 1.0, 1.5], dtype=torch.float64))


def test_root_mean_squares_make_the_least_noise_behind_a_rotation() -> None:
    """Σ E[x²]/s² · Σ s²‖w‖², the noise that readers see where it is spread evenly: any other s makes more."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 24, generator=generator) * torch.logspace(-2, 2, 24)
    w = torch.randn(8, 24, generator=generator) * torch.rand(24, generator=generator)
    power = MEASURES["rms"].inputs()
    power.update(x[:200])
    power.update(x[200:])
    weights = MEASURES["rms"].norm(w, 0)
    torch.testing.assert_close(power.sizes(), x.double().square().mean(0).sqrt(), rtol=1e-6, atol=0)

    def noise(s: Tensor) -> float:
        return float((x.double() / s).square().mean(0).sum() * (w.double() * s).square().sum())

    best = smoothing_scales(power.sizes(), weights, 0.5)
    least = noise(best)
    assert least < 0.7 * noise(torch.ones(24, dtype=torch.float64))
    for seed in range(20):
        other = best * torch.rand(24, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).add(0.5)
        assert noise(other) > least


def test_r2_is_learned_on_smoothed_values() -> None:
    learned = ["rotations.r2.kind=learned", "rotations.r2.steps=5"]
    _, plain = calibrated("llama", *learned)
    _, smooth = calibrated("llama", *learned, "smoothing.alpha=0.5")
    assert not torch.allclose(plain.r2[0], smooth.r2[0])


def test_smoothing_is_named_in_the_artifact(tmp_path: Path, tokenizer) -> None:
    recipe = jointquant.load_recipe("fp16", small("smoothing.alpha=0.5", *possible("llama")))
    result = jointquant.quantize(make_model("llama"), tmp_path / "a", recipe, tokenizer=tokenizer)
    assert result.transforms["smoothing"] == "alpha 0.5, max, merged, at attn_in, down_in, mlp_in, o_in"


def test_a_function_that_no_scale_passes_is_refused(tmp_path: Path, tokenizer) -> None:
    model = make_model("opt", activation_function="gelu")
    assert isinstance(model, nn.Module)
    recipe = jointquant.load_recipe("fp16", small("smoothing.alpha=0.5"))
    with pytest.raises(InputError, match=r"activation_function gelu .* expected relu"):
        jointquant.quantize(model, tmp_path / "a", recipe, tokenizer=tokenizer)
