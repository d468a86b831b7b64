"""The plan: it fits its budget, says what would fit, and what it chooses changes no figure."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig

import jointquant
from conftest import COMMON, FAMILIES, SPECIAL, make_model, possible, small
from jointquant.backend.devices import HOST, ON_PAPER_DEVICE, tokens_at_once
from jointquant.backend.memory import bytes_of_size, words
from jointquant.cli.main import main
from jointquant.errors import InputError
from jointquant.models.stream import open_stream
from jointquant.planning.budget import free_disk
from jointquant.planning.needs import Workload
from jointquant.planning.plan import Budget, Choice, choices, make_plan, plan_of, shortages
from jointquant.planning.shape import shape_of, shape_of_model
from jointquant.planning.traffic import traffic_of
from jointquant.run.journal import partial_folder

GB = 10**9


def config(**changes: int) -> LlamaConfig:
    sizes = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
    return LlamaConfig(**(sizes | changes), dtype="bfloat16")


def work(device: torch.device = HOST, windows: int = 128, recipe: str = "dartquant", **sizes: int) -> Workload:
    dtype = torch.float32 if device == HOST else torch.bfloat16
    return Workload(shape_of(config(**sizes)), jointquant.load_recipe(recipe), windows, 2048, dtype, device, GB // 2)


SEVEN = {device: work(device) for device in (HOST, ON_PAPER_DEVICE)}


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_are_those_of_the_model(family: str) -> None:
    model = make_model(family)
    shape, stream = shape_of(model.config), open_stream(model)
    assert shape_of_model(stream.skeleton, stream.architecture, shape.dtype) == shape
    sizes = [
        sum(p.numel() for name, p in model.named_parameters() if f".layers.{index}." in name) for index in range(3)
    ]
    largest = f".layers.{sizes.index(max(sizes))}."
    assert (shape.num_layers, shape.layer) == (3, max(sizes))
    assert shape.head == model.get_output_embeddings().weight.numel()
    routers = ("mlp.gate.weight", "mlp.shared_expert_gate.weight")
    assert shape.linears == sum(
        p.numel()
        for name, p in model.named_parameters()
        if largest in name and p.ndim >= 2 and not name.endswith(routers)
    )


def test_a_token_passes_some_of_the_experts() -> None:
    shape, sizes = shape_of(make_model("qwen2_moe").config), COMMON | SPECIAL["qwen2_moe"]
    assert shape.intermediate_size == sizes["intermediate_size"]  # of the dense layer
    expert, shared, chosen, hidden = (
        sizes[key]
        for key in (
            "moe_intermediate_size",
            "shared_expert_intermediate_size",
            "num_experts_per_tok",
            "hidden_size",
        )
    )
    attention = 2 * 48 * 48 + 2 * 24 * 48
    assert shape.active == pytest.approx(attention + 3 * hidden * (chosen * expert + shared))
    assert shape.inner_channels == pytest.approx(chosen * expert + shared)


@given(st.integers(1, 60 * GB), st.integers(1, 60 * GB), st.sampled_from(list(SEVEN)))
def test_a_plan_fits_or_is_refused(host: int, device: int, where: torch.device) -> None:
    budget = Budget(host, None if where == HOST else device)
    try:
        plan = make_plan(SEVEN[where], budget)
    except InputError:
        assert shortages(plan_of(SEVEN[where], Choice("disk", 512), budget))
    else:
        assert plan.host_peak <= host
        assert where == HOST or plan.device_peak <= device


def test_states_leave_memory_before_batches_shrink() -> None:
    work = replace(SEVEN[HOST], seqlen=256)
    whole = plan_of(work, Choice("device", 1024), Budget())
    spilled = make_plan(work, Budget(whole.host_peak - 1))
    assert (whole.choice.storage, spilled.choice.storage) == ("device", "disk")
    assert spilled.choice.batch_tokens == whole.choice.batch_tokens == 1024
    kept = [(choice.storage, choice.batch_tokens, choice.keep_inner) for choice in choices(work, None)]
    in_memory, in_files = ("device", 1024), ("disk", 1024)
    assert kept[:4] == [(*in_memory, True), (*in_memory, False), (*in_files, True), (*in_files, False)]
    assert kept[4:] == [("disk", tokens, keep) for tokens in (512, 256) for keep in (True, False)]
    assert not any(choice.keep_inner for choice in choices(replace(work, recipe=jointquant.load_recipe("rtn")), None))


def test_an_accelerator_makes_again_what_would_lie_in_files() -> None:
    assert [choice for choice in choices(SEVEN[ON_PAPER_DEVICE], None) if choice.keep_inner] == [
        Choice("device", tokens_at_once(ON_PAPER_DEVICE), keep_inner=True)
    ]


def test_what_a_down_projection_reads_is_the_first_to_go() -> None:
    kept = make_plan(SEVEN[HOST], Budget())
    made_again = make_plan(SEVEN[HOST], Budget(kept.host_peak - 1))
    assert (kept.choice.keep_inner, made_again.choice) == (True, Choice("device", kept.choice.batch_tokens))
    assert kept.host_peak - made_again.host_peak == SEVEN[HOST].num_windows * SEVEN[HOST].seqlen * 11008 * 4


def test_what_lies_in_files_is_room_on_the_disk() -> None:
    work = SEVEN[HOST]
    held, kept, made_again = (
        plan_of(work, choice, Budget()).disk_total
        for choice in (Choice("device", 1024), Choice("disk", 1024, keep_inner=True), Choice("disk", 1024))
    )
    tokens = work.num_windows * work.seqlen * 4
    assert (made_again - held, kept - made_again) == (tokens * 4096, tokens * 11008)


def test_what_would_fit_fits() -> None:
    long = replace(work(recipe="rtn"), seqlen=16384, num_windows=8)
    budget = Budget(plan_of(long, Choice("disk", 16384), Budget()).host_peak - 1)
    with pytest.raises(InputError, match=r"does not fit: host memory of .* at least.*or --seqlen 8192"):
        make_plan(long, budget)
    make_plan(replace(long, seqlen=8192), budget)


def test_hessians_that_do_not_fit() -> None:
    wide = work(intermediate_size=28672)
    budget = Budget(plan_of(wide, Choice("disk", 512), Budget()).host_peak - 1)
    with pytest.raises(InputError, match=r"a larger budget, or --set weights\.method=rtn"):
        make_plan(wide, budget)


def test_memory_does_not_grow_with_depth() -> None:
    shallow, deep = (make_plan(work(num_hidden_layers=n), Budget()) for n in (8, 80))
    assert deep.host_peak < 1.1 * shallow.host_peak


def test_a_disk_that_is_too_small() -> None:
    with pytest.raises(InputError, match=r"disk of .* at least, and there are 1\.00 GB"):
        make_plan(SEVEN[HOST], Budget(disk=GB))


@pytest.mark.parametrize("preset", ["w4a4kv4", "quarot", "jointquant"])
def test_files_of_hidden_states_change_nothing(preset: str, save_model, tmp_path: Path, monkeypatch) -> None:
    model = save_model("llama")
    recipe = jointquant.load_recipe(preset, small(*possible("llama")))
    jointquant.quantize(model, tmp_path / "a", recipe)
    planned = jointquant.job.plan_runs

    def spilled(*arguments: object) -> object:
        return [replace(plan, choice=replace(plan.choice, storage="disk")) for plan in planned(*arguments)]

    monkeypatch.setattr(jointquant.job, "plan_runs", spilled)
    jointquant.quantize(model, tmp_path / "b", recipe)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_a_dry_run_needs_the_configuration_alone(tmp_path: Path, capsys) -> None:
    config().save_pretrained(tmp_path / "m")
    arguments = ["quantize", str(tmp_path / "m"), "--out", str(tmp_path / "o"), "--dry-run", "--json"]
    with pytest.raises(SystemExit) as end:
        main([*arguments, "--memory-budget", "64GB", "--device-budget", "24GB"])
    assert end.value.code == 0
    plan = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert plan["assumed"] is True
    assert plan["device_peak_bytes"] <= 24e9
    assert sum(plan["seconds"].values()) > 60
    assert not (tmp_path / "o").exists()
    with pytest.raises(SystemExit) as end:
        main([*arguments, "--memory-budget", "64GB", "--device-budget", "2GB"])
    assert end.value.code == 2
    assert "device memory of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--set", "weights.group_size=48"], "does not divide"),
        (["--seqlen", "100000"], "is longer than the model's"),
        (["--calib", "nosuch.txt"], "no such text file"),
        (["--overwrite", "--out", "OUT"], "holds no earlier output"),
        (["--out", "OUT"], "is not empty"),
    ],
)
def test_a_dry_run_refuses_what_the_run_would(flags: list[str], message: str, tmp_path: Path, capsys) -> None:
    config().save_pretrained(tmp_path / "m")
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "mine").write_text("")
    given = [str(tmp_path / "o") if flag == "OUT" else flag for flag in flags]
    target = [] if "--out" in given else ["--out", str(tmp_path / "new")]
    with pytest.raises(SystemExit) as end:
        main(["quantize", str(tmp_path / "m"), *target, "--dry-run", *given])
    assert end.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif(torch.accelerator.is_available(), reason="this machine has an accelerator")
def test_a_device_budget_is_for_an_accelerator(save_model, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the device is the CPU"):
        jointquant.quantize(
            save_model("llama"), tmp_path / "o", jointquant.load_recipe("rtn", small()), device_budget="1GB"
        )


@pytest.mark.parametrize(("text", "size"), [("24GB", 24 * GB), ("1.5 gib", 3 * 2**29), ("800mb", 8 * 10**8), ("7", 7)])
def test_sizes(text: str, size: int) -> None:
    assert bytes_of_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "1e9", "24 XB", "nan", "0", "9" * 40])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(InputError, match="is no size"):
        bytes_of_size(text)


@pytest.mark.parametrize(("size", "text"), [(5, "5 B"), (24e9, "24.00 GB"), (123_456_789, "123 MB"), (5e12, "5000 GB")])
def test_sizes_in_words(size: float, text: str) -> None:
    assert words(size) == text


def test_what_an_unfinished_run_wrote_is_its_own_room(tmp_path: Path) -> None:
    before = free_disk(tmp_path / "out")
    work = partial_folder(tmp_path / "out") / "work"
    work.mkdir(parents=True)
    (work / "states").write_bytes(b"x" * 50_000_000)
    assert free_disk(tmp_path / "out") - free_disk(tmp_path / "other") == 50_000_000
    assert before > 0
    assert free_disk(Path()) > 0


def test_refinement_that_does_not_fit() -> None:
    refined = work(recipe="w4a4kv4")
    budget = Budget(plan_of(refined, Choice("disk", 512), Budget()).host_peak - 1)
    with pytest.raises(InputError, match=r"a larger budget, or --set refinement\.steps=0"):
        make_plan(refined, budget)


def test_ranks_send_each_other_the_tokens_of_a_learned_r4() -> None:
    alike = replace(work(recipe="w4a4kv4"), ranks=8)
    rotations = alike.recipe.rotations
    r4 = jointquant.load_recipe("quarot").rotations.r4
    plain = replace(
        alike, recipe=alike.recipe.model_copy(update={"rotations": rotations.model_copy(update={"r4": r4})})
    )
    more = {kind: size - traffic_of(plain).get(kind, 0) for kind, size in traffic_of(alike).items()}
    tokens, layers = rotations.r4.num_tokens, 32  # type: ignore[union-attr]
    assert {kind: size for kind, size in more.items() if size} == {
        "samples for R4": tokens * 11008 * 4 * layers * 7 // 8
    }
