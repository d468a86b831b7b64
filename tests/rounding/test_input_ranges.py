"""Input and cache quantizers of their own kinds: what is calibrated, stored, and used by the loaded artifact."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import jointquant
from conftest import FAMILIES, make_model, possible, small
from jointquant.activations.hidden_states import HiddenStates
from jointquant.errors import InputError
from jointquant.quantization.integer import IntFormat, fake_quantize
from jointquant.quantization.ranges import CLIP_RATIOS, ChannelBounds, DynamicRange, StaticRange, clip_search
from jointquant.rounding.input_ranges import SEARCHED_TOKENS, searched_batches
from jointquant.text.sources import load_text
from jointquant.text.tokens import tokenize
from jointquant.text.windows import calibration_windows

INPUT_IDS = torch.randint(0, 2048, (2, 20), generator=torch.Generator().manual_seed(3))
FOUR = ("weights.num_bits=4", "activations.num_bits=4")


def quantized(folder: Path, tokenizer, *changes: str, family: str = "llama", **options: object):
    recipe = jointquant.load_recipe("fp16", small(*changes))
    jointquant.quantize(make_model(family, **options), folder, recipe, tokenizer=tokenizer)  # type: ignore[arg-type]
    return jointquant.load(folder, device="cpu", kernels="reference")


def error(x: torch.Tensor, quantizer, known=None) -> float:
    return float((quantizer.quantize(x, known or {}) - x).square().sum())


@pytest.mark.parametrize("symmetric", [False, True])
def test_static_ranges_cover_what_was_seen(symmetric: bool) -> None:
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0)) * torch.logspace(-2, 2, 8)
    bounds = ChannelBounds()
    for part in x.split(10):
        bounds.update(part)
    assert torch.equal(bounds.sizes(), x.abs().amax(0))
    fmt = IntFormat(8, symmetric)
    channel, tensor = StaticRange(fmt, "channel"), StaticRange(fmt, "tensor")
    per_channel = channel.found(*bounds.bounds(), 1.0)
    assert per_channel["input_scale"].shape == (8,)
    assert tensor.found(*bounds.bounds(), 1.0)["input_scale"].shape == (1,)
    restored = channel.quantize(x, per_channel)
    assert bool(((restored - x).abs() <= 1.01 * per_channel["input_scale"]).all())
    assert error(x, channel, per_channel) < error(x, tensor, tensor.found(*bounds.bounds(), 1.0))
    # One channel's static grid is the dynamic grid of that channel taken as one row.
    torch.testing.assert_close(restored[:, 3], fake_quantize(x[:, 3], fmt))


@pytest.mark.parametrize(("windows", "seqlen"), [(3, 64), (64, 256), (222, 256), (128, 2048)])
def test_clip_ratios_are_searched_on_some_thousand_tokens_from_everywhere(windows: int, seqlen: int) -> None:
    numbers = torch.arange(windows, dtype=torch.float32).view(-1, 1, 1).expand(-1, seqlen, 1)
    states = HiddenStates.held(numbers)
    seen = [batch[0, 0, 0].item() for batch in states.batches(searched_batches(states))]
    tokens = sum(batch.shape[0] * seqlen for batch in states.batches(searched_batches(states)))
    assert min(SEARCHED_TOKENS, windows * seqlen) <= tokens <= 2 * SEARCHED_TOKENS
    assert seen[-1] - seen[0] > 0.4 * (windows - 4)


def test_the_search_finds_the_least_error() -> None:
    x = torch.randn(512, 32, generator=torch.Generator().manual_seed(0))
    x[::7, 0] *= 6
    fmt = IntFormat(3, symmetric=False)
    search = clip_search(DynamicRange(fmt), None)
    for part in x.split(100):
        search.update(part)
    best = min(CLIP_RATIOS, key=lambda ratio: error(x, DynamicRange(fmt, ratio)))
    assert search.best() == best < 1


@pytest.mark.parametrize(
    ("strategy", "clip", "buffers"),
    [
        ("token", "search", {"input_clip_ratio": ()}),
        ("group", "search", {"input_clip_ratio": ()}),
        ("tensor", "1.0", {"input_scale": (1,), "input_zero_point": (1,)}),
        ("tensor", "search", {"input_scale": (1,), "input_zero_point": (1,)}),
        ("channel", "0.9", {"input_scale": None, "input_zero_point": None}),
        ("channel", "search", {"input_scale": None, "input_zero_point": None}),
    ],
)
@pytest.mark.parametrize("weight_bits", [4, 16])
def test_what_is_found_is_in_the_artifact(strategy, clip, buffers, weight_bits, tmp_path: Path, tokenizer) -> None:
    changes = [f"activations.strategy={strategy}", f"activations.clip_ratio={clip}", "rotations.r4.kind=hadamard"]
    changes += ["activations.num_bits=4", f"weights.num_bits={weight_bits}"]
    changes += ["activations.group_size=16"] if strategy == "group" else []
    loaded = quantized(tmp_path / "a", tokenizer, *changes)
    for name, linear in loaded.model.layers[1].named_modules():
        if hasattr(linear, "path"):
            known = {key: tensor for key, tensor in linear.named_buffers() if key.startswith("input_")}
            assert known.keys() == buffers.keys(), name
            assert all(torch.isfinite(tensor).all() for tensor in known.values())
            for key, shape in buffers.items():
                assert known[key].shape == ((linear.in_features,) if shape is None else shape), (name, key)
    attention = loaded.model.layers[1].self_attn
    for key in buffers:
        assert torch.equal(getattr(attention.q_proj, key), getattr(attention.v_proj, key))
    assert torch.isfinite(loaded(input_ids=INPUT_IDS).logits).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_run_and_the_artifact_compute_the_same(family: str, tmp_path: Path, tokenizer, monkeypatch) -> None:
    """The hidden states that leave the last layer of the run are those of the loaded model, bit for bit."""
    seen: list[torch.Tensor] = []
    head = jointquant.rounding.layers.quantize_head

    def keep(job, rotations, states, shards) -> None:
        seen.append(states.first(states.num_windows))
        head(job, rotations, states, shards)

    monkeypatch.setattr(jointquant.rounding.layers, "last_reader", lambda assembly: len(assembly.layers))
    monkeypatch.setattr(jointquant.rounding.layers, "quantize_head", keep)
    changes = [*FOUR, "activations.strategy=channel", "activations.clip_ratio=search", "kv_cache.num_bits=4"]
    changes += ["kv_cache.values={num_bits: 3, clip_ratio: 0.9}"]
    changes += possible(family, *(f"rotations.{r}.kind=hadamard" for r in ("r1", "r2", "r3", "r4")))
    loaded = quantized(tmp_path / "a", tokenizer, *changes, family=family)
    settings = jointquant.load_recipe("fp16", small()).calibration
    tokens = tokenize(tokenizer, load_text(settings.source, "calibration"))
    windows = calibration_windows(tokens, 4, 32, 0, settings.source)
    got: list[torch.Tensor] = []
    last = loaded.get_submodule(jointquant.models.registry.ARCHITECTURES[family].layers)[-1]
    last.register_forward_hook(lambda _m, _i, output: got.append(output[0] if isinstance(output, tuple) else output))
    with torch.no_grad():
        loaded(input_ids=windows)
    assert torch.equal(got[0], seen[0])


def test_keys_and_values_have_quantizers_of_their_own(tmp_path: Path, tokenizer) -> None:
    changes = [
        "kv_cache={num_bits: 4, clip_ratio: 0.95, keys: {num_bits: 8, group_size: 4}, values: {symmetric: true}}"
    ]
    loaded = quantized(tmp_path / "a", tokenizer, *changes)
    path = loaded.model.layers[0].self_attn.cache_path
    assert path.key == DynamicRange(IntFormat(8, False, 4), 0.95)
    assert path.value == DynamicRange(IntFormat(4, True, None), 0.95)
    only_values = quantized(tmp_path / "b", tokenizer, "kv_cache.values={num_bits: 4}")
    path = only_values.model.layers[0].self_attn.cache_path
    assert path.key is None
    assert path.value == DynamicRange(IntFormat(4, False))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["activations.strategy=group"], "group_size"),
        (["activations.strategy=channel", "activations.group_size=16"], "expected null"),
        (["activations.clip_ratio=find"], "activations.clip_ratio"),
        (["kv_cache.keys={bits: 4}"], "bits"),
        (["kv_cache.values={num_bits: 1}"], "between 2 and 8"),
        (["kv_cache.keys={group_size: 5}"], "group_size 5 of the keys"),
        (
            [
                "activations={num_bits: 4, strategy: tensor}",
                "rotations.r1={kind: learned, objective: quant_error}",
            ],
            "token or group",
        ),
    ],
)
def test_refusals_are_one_line(changes: list[str], message: str, tmp_path: Path, tokenizer) -> None:
    with pytest.raises(InputError, match=message) as refused:
        quantized(tmp_path / "a", tokenizer, "kv_cache.num_bits=4", *changes)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "a").exists()
