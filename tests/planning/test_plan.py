"""The plan: it fits its budget, says what would fit, and what it chooses changes no figure."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import jointquant
from conftest import few_steps, possible, small
from jointquant.backend.devices import HOST, ON_PAPER_DEVICE, tokens_at_once
from jointquant.errors import InputError
from jointquant.planning.needs import phases_of
from jointquant.planning.plan import Budget, Choice, choices, make_plan, plan_of, shortages
from jointquant.planning.workload import DEMANDS
from workloads import GB, work

SEVEN = {device: work(device) for device in (HOST, ON_PAPER_DEVICE)}


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
    with pytest.raises(InputError, match=r"does not fit: host memory of .* at least.*or `seqlen=8192`"):
        make_plan(long, budget)
    make_plan(replace(long, seqlen=8192), budget)


def test_hessians_that_do_not_fit() -> None:
    wide = work(intermediate_size=28672)
    budget = Budget(plan_of(wide, Choice("disk", 512), Budget()).host_peak - 1)
    with pytest.raises(InputError, match=r"a larger budget, or `weights\.method=rtn`"):
        make_plan(wide, budget)


def test_memory_does_not_grow_with_depth() -> None:
    shallow, deep = (make_plan(work(num_hidden_layers=n), Budget()) for n in (8, 80))
    assert deep.host_peak < 1.1 * shallow.host_peak


def test_a_disk_that_is_too_small() -> None:
    with pytest.raises(InputError, match=r"disk of .* at least, and there are 1\.00 GB"):
        make_plan(SEVEN[HOST], Budget(disk=GB))


@pytest.mark.parametrize("preset", ["w4a4kv4", "quarot", "joint-range"])
def test_files_of_hidden_states_change_nothing(preset: str, save_model, tmp_path: Path, monkeypatch) -> None:
    model = save_model("llama")
    recipe = jointquant.load_recipe(preset, small(*few_steps(preset), *possible("llama")))
    jointquant.quantize(model, tmp_path / "a", recipe)
    planned = jointquant.job.plan_runs

    def spilled(*arguments: object) -> object:
        return [replace(plan, choice=replace(plan.choice, storage="disk")) for plan in planned(*arguments)]

    monkeypatch.setattr(jointquant.job, "plan_runs", spilled)
    jointquant.quantize(model, tmp_path / "b", recipe)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_refinement_that_does_not_fit() -> None:
    refined = work(recipe="w4a4kv4")
    budget = Budget(plan_of(refined, Choice("disk", 512), Budget()).host_peak - 1)
    with pytest.raises(InputError, match=r"a larger budget, or `refinement\.steps=0`"):
        make_plan(refined, budget)


def test_a_comparison_plans_for_what_it_measures() -> None:
    """Two heads and the logits of a window stand together; with a longer window there are more."""
    shape, wanted = work().shape, DEMANDS["compare"](work())
    short, long = (
        next(each for each in phases_of(replace(wanted, measured=tokens), 4096) if each.name == "measure").computing
        for tokens in (512, 2048)
    )
    assert short["two heads"] == long["two heads"] == 2 * 4 * shape.head
    assert long["logits"] - short["logits"] == 2 * (2048 - 512) * (shape.head // shape.hidden_size) * 4
    assert "measure" not in [each.name for each in phases_of(DEMANDS["quantize"](work()), 4096)]
