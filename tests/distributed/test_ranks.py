"""Who has what, without processes: parts of windows and work, plans for several ranks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig

import jointquant
from conftest import make_model, small
from jointquant.activations.hidden_states import HiddenStates
from jointquant.activations.stores import HeldStates, Share
from jointquant.cli.main import main
from jointquant.distributed.ranks import Ranks
from jointquant.errors import InputError
from jointquant.models.layer import Place
from jointquant.models.stream import open_stream
from jointquant.quantization.gptq import HessianSum
from jointquant.quantization.integer import IntFormat
from jointquant.quantization.ranges import DynamicRange, StaticRange
from jointquant.quantization.weights import QuantizedWeight
from jointquant.rotations.sampling import TokenSample
from jointquant.rounding.hessians import SharedHessian
from jointquant.rounding.layer import LayerInWork
from jointquant.rounding.weights import round_site
from jointquant.run.fitting import assemble

sizes = st.integers(1, 9)


@given(size=sizes, more=st.integers(0, 60), batch=st.integers(1, 7))
def test_every_window_is_on_one_rank(size: int, more: int, batch: int) -> None:
    windows = size + more
    shares = [Share(Ranks(rank, size), windows, batch) for rank in range(size)]
    assert [number for share in shares for number in share.part()] == list(range(windows))
    assert all(len(share.part()) for share in shares)
    for rank, share in enumerate(shares):
        assert all(shares[0].owner(number) == rank for number in share.part())
        if -(-windows // batch) >= size:
            assert share.part().start % batch == 0  # whole batches


@given(size=sizes, windows=st.integers(9, 40), batch=st.integers(1, 7))
def test_batches_of_ranks_are_those_of_one(size: int, windows: int, batch: int) -> None:
    tokens = torch.arange(windows)
    alone = [part.tolist() for part in states_of(Ranks(), windows, batch).own(tokens)]
    assert alone == [part.tolist() for part in tokens.split(batch)]
    every = [states_of(Ranks(rank, size), windows, batch) for rank in range(size)]
    together = [part.tolist() for states in every for part in states.own(tokens)]
    assert [number for part in together for number in part] == tokens.tolist()
    if -(-windows // batch) >= size:
        assert together == alone


def states_of(ranks: Ranks, windows: int, batch: int) -> HiddenStates:
    return HiddenStates(HeldStates(torch.zeros(windows, 3, 2)), windows, batch, torch.device("cpu"), ranks)


@given(size=sizes, windows=st.integers(9, 20), batch=st.integers(1, 7), share=st.floats(0.05, 1.0))
def test_each_rank_samples_the_tokens_that_one_would(size: int, windows: int, batch: int, share: float) -> None:
    x = torch.arange(windows * 3.0).view(windows, 3, 1)
    alone = TokenSample(share, torch.Generator().manual_seed(0))
    for part in x.split(batch):
        alone.update(part)
    kept = []
    for rank in range(size):
        states = states_of(Ranks(rank, size), windows, batch)
        sample = TokenSample(share, torch.Generator().manual_seed(0), states.ranks)
        sample.expect(states.token_parts())
        for part in states.own(x):
            sample.update(part)
        kept += sample.kept
    assert torch.equal(torch.cat(kept), alone.take())


@given(size=sizes, costs=st.lists(st.floats(0.1, 100.0), min_size=1, max_size=40))
def test_work_is_shared_out_evenly(size: int, costs: list[float]) -> None:
    owners = Ranks(size=size).share_out(costs)
    busy = [sum(c for c, o in zip(costs, owners, strict=True) if o == rank) for rank in range(size)]
    assert max(busy) <= sum(costs) / size + max(costs) + 1e-9
    assert Ranks(size=size).share_out(costs) == owners


@pytest.mark.parametrize("method", ["rtn", "gptq"])
@pytest.mark.parametrize("size", [2, 3, 60])
def test_ranks_share_rows(method: str, size: int) -> None:
    """Together they round what one would; of 60, some have no row of the keys."""
    stream = open_stream(make_model("llama"))
    assembly = assemble(
        stream.skeleton,
        stream.architecture,
        jointquant.load_recipe("fp16", small("weights.num_bits=4", f"weights.method={method}")),
    )
    module = stream.layer(0, Place(torch.device("cpu"), torch.float32))
    layer = LayerInWork(module, 0, assembly, HiddenStates.held(torch.zeros(1, 1, 48)), {}, torch.float32)
    site = layer.architecture.sites[0]

    def rounded(ranks: Ranks) -> dict[str, QuantizedWeight]:
        hessian = HessianSum(48, torch.device("cpu"))
        hessian.update(torch.randn(200, 48, generator=torch.Generator().manual_seed(1)))
        return round_site(layer, site, hessian, ranks)

    alone = rounded(Ranks())
    assert list(alone) == list(site.linears)
    shares = [rounded(Ranks(rank, size)) for rank in range(size)]
    most = max(sum(len(weight.codes) for weight in share.values()) for share in shares)
    assert most <= sum(len(weight.codes) for weight in alone.values()) / size + len(alone)
    for name, whole in alone.items():
        parts = [share[name] for share in shares if name in share]
        together = QuantizedWeight.joined(parts)
        assert torch.equal(together.codes, whole.codes)
        assert torch.equal(together.scale, whole.scale)
    assert any(len(share) < len(alone) for share in shares) == (size == 60)


@pytest.mark.parametrize("group_size", [None, 4])
@pytest.mark.parametrize("strategy", ["token", "channel"])
@pytest.mark.parametrize("start", [0, 3, 11])
def test_kept_tokens_come_back(group_size: int | None, strategy: str, start: int) -> None:
    x = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(0))
    fmt = IntFormat(4, symmetric=False, group_size=group_size if strategy == "token" else None)
    quantizer = DynamicRange(fmt) if strategy == "token" else StaticRange(fmt, "channel")
    low, high = x.flatten(0, 1).amin(0), x.flatten(0, 1).amax(0)
    known = quantizer.found(low, high, 1.0) if isinstance(quantizer, StaticRange) else {}
    hessian = SharedHessian(12, torch.device("cpu"), Ranks(0, 2))
    hessian.update_codes(quantizer.encode(x, known), fmt, x.dtype)
    hessian.update(x)
    codes, values = (kept.channels(12, start).t() for kept in hessian.kept)
    assert torch.equal(codes, quantizer.quantize(x, known).flatten(0, 1)[:, start:])
    assert torch.equal(values, x.flatten(0, 1)[:, start:])


@pytest.fixture
def configuration(tmp_path: Path) -> Path:
    shape = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 8, "num_attention_heads": 16}
    LlamaConfig(**shape, num_key_value_heads=8, vocab_size=32000, dtype="bfloat16").save_pretrained(tmp_path / "m")
    return tmp_path / "m"


def test_a_plan_for_several_ranks(configuration: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dry = {}
    for size in (1, 4):
        arguments = ["quantize", str(configuration), "--out", "o", "--dry-run", "--json", "--recipe", "dartquant"]
        arguments += ["--device-budget", "24GB"]
        with pytest.raises(SystemExit) as end:
            main([*arguments, *(["--world-size", str(size)] if size > 1 else [])])
        assert end.value.code == 0
        dry[size] = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert "network_bytes" not in dry[1]
    one, four = (sum(dry[size]["seconds"].values()) for size in (1, 4))
    assert one / 4 < four < one
    hessians = 8 * 4 * (3 * 1024**2 + 4096**2)
    assert dry[4]["network_bytes"]["Hessians"] == hessians
    assert dry[4]["network_seconds"]["10 Gbit/s"] == pytest.approx(sum(dry[4]["network_bytes"].values()) / 1.25e9)


def test_more_ranks_than_windows_are_refused(configuration: Path) -> None:
    recipe = jointquant.load_recipe("rtn", ["calibration.num_samples=3"])
    with pytest.raises(InputError, match="4 ranks and 3 calibration windows"):
        jointquant.dry_run(configuration, recipe, world_size=4)
    assert jointquant.dry_run(configuration, recipe, world_size=3, device_budget="24GB").world_size == 3


def test_world_size_is_for_plans(configuration: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["quantize", str(configuration), "--out", str(tmp_path / "o"), "--world-size", "2"])
    assert end.value.code == 2
    assert "--world-size is for --dry-run" in capsys.readouterr().err
