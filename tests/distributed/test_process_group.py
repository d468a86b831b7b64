"""Several processes make what one makes; whatever ends one of them ends all, and the run goes on with any number."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
from torch.distributed import DistNetworkError

import jointquant
from conftest import DEMO, make_model
from jointquant.distributed import process_group
from jointquant.errors import ResumableError
from jointquant.run.journal import partial_folder
from processes import (
    WINDOWS,
    answer,
    assert_same,
    environment,
    forked,
    kill,
    launcher,
    quantized,
    run,
    succeed,
    told,
    wait_for_steps,
    workers_of,
)

TEXT = ("--text", str(DEMO / "heldout.txt"), "--max-tokens", "9000")


def test_two_ranks_make_the_same_tensors_and_predictions(model: Path, alone: Path, tmp_path: Path) -> None:
    done = succeed(2, *quantized(model, tmp_path / "a"))
    assert not done["resumed"]
    assert_same(tmp_path / "a", alone)
    assert not partial_folder(tmp_path / "a").exists()
    text = str(DEMO / "heldout.txt")
    evaluation = ["eval", tmp_path / "a", "--reference", model, *TEXT, "--seqlen", "32", "--json"]
    together = answer(*forked([evaluation] * 2))
    result = jointquant.evaluate(tmp_path / "a", (text,), reference=model, seqlen=32, max_tokens=9000)
    assert together["perplexity"] == pytest.approx(result.perplexity, rel=1e-9)
    assert together["divergence"][text] == pytest.approx(asdict(result.divergence[text]), rel=1e-6)


def test_everything_at_once(model: Path, tmp_path: Path) -> None:
    """Smoothing, centring, balancing, learned R3, static ranges, searched clips: each has a sum of its own."""
    changes = [
        "smoothing.alpha=0.5",
        "activations.centring=mean",
        "activations.clip_ratio=search",
        "kv_cache.balancing=full",
        "kv_cache.centring=both",
        "rotations.r3.kind=learned",
        "rotations.r3.steps=4",
        "head.num_bits=4",
        "head.method=gptq",
        "rotations.r1.strategy=joint",
        "rotations.r1.optimizer=newton_schulz",
    ]
    flags = [word for change in changes for word in ("--set", change)]
    for done in forked(*([quantized(model, tmp_path / str(ranks), *flags, "--json")] * ranks for ranks in (1, 2))):
        answer(done)
    assert_same(tmp_path / "1", tmp_path / "2")


def test_refinement_and_compare(model: Path, tmp_path: Path) -> None:
    """Learned rounding sums gradients over the ranks: the same up to their last digits, which it amplifies."""
    recipe = tmp_path / "refined.yaml"
    recipe.write_text("weights: {num_bits: 4}\nrefinement: {steps: 6}\n")
    flags = ("--recipes", f"{recipe},rtn", *WINDOWS, *TEXT, "--eval-seqlen", "32", "--json")
    both = forked(*([["compare", model, "--out", tmp_path / str(ranks), *flags]] * ranks for ranks in (1, 2)))
    for one, two in zip(*(answer(done)["rows"] for done in both), strict=True):
        (a,), (b,) = one["perplexity"].values(), two["perplexity"].values()
        assert b == pytest.approx(a, rel=1e-3)
    assert (tmp_path / "2" / "report.html").is_file()


def started(ranks: int, model: Path, out: Path) -> subprocess.Popen[str]:
    command = [*launcher(ranks), *map(str, quantized(model, out))]
    return subprocess.Popen(command, stdout=-1, stderr=-1, text=True, env=environment())


@pytest.mark.parametrize(("steps", "others"), [(1, 1), (5, 3)])
def test_a_rank_that_dies_is_named_and_the_run_goes_on(
    steps: int, others: int, model: Path, tmp_path: Path, alone: Path
) -> None:
    out = tmp_path / "a"
    process = started(2, model, out)
    wait_for_steps(partial_folder(out), steps, process)
    victim, start = workers_of(process)[1], time.monotonic()
    kill(victim)
    _, err = process.communicate(timeout=100)
    assert time.monotonic() - start < 60
    assert process.returncode != 0
    (line,) = told(err)
    assert f"rank 1 (process {victim} on" in line
    assert "run the same command again" in line
    assert "jointquant/" not in err  # no traceback of ours
    assert answer(*forked([[*quantized(model, out), "--json"]] * others))["resumed"]
    assert_same(out, alone)


def test_ranks_that_do_different_things_are_refused(model: Path, tmp_path: Path, tokenizer) -> None:
    other = tmp_path / "other"
    make_model("llama", seed=1).save_pretrained(other)
    tokenizer.save_pretrained(other)
    out = tmp_path / "a"
    first = quantized(model, out)
    cases = {
        "recipe.weights.num_bits was 4, now 3": quantized(model, out, "--set", "weights.num_bits=3"),
        "model.shards.model.safetensors was": quantized(other, out),
        "different verbs": ["eval", model, *TEXT],
    }
    for message, done in zip(cases, forked(*([first, second] for second in cases.values())), strict=True):
        assert [each.returncode for each in done] == [2, 2], [each.stderr for each in done]
        (line,) = [line for each in done for line in told(each.stderr)]
        assert message in line
        assert not out.exists()


def test_what_several_ranks_cannot_do_is_refused_once(model: Path, tmp_path: Path) -> None:
    cases = {
        "2 ranks and 1 calibration windows": quantized(model, tmp_path / "a", "--num-samples", "1"),
        "unknown recipe 'none'": quantized(model, tmp_path / "a", "--recipe", "none"),
        "generate runs in one process": ["generate", model, "--prompt", "a"],
    }
    for message, done in zip(cases, forked(*([command] * 2 for command in cases.values())), strict=True):
        assert [each.returncode for each in done] == [2, 2], [each.stderr for each in done]
        (line,) = [line for each in done for line in told(each.stderr)]
        assert message in line
    done = run(2, *quantized(model, tmp_path / "a", "--num-samples", "1"))
    assert done.returncode != 0
    assert len(told(done.stderr)) == 1


def test_a_rank_whose_leader_is_gone_before_all_have_joined(monkeypatch) -> None:
    """The store answers no more, as when the process that holds it is killed at once."""

    def broken(_: str) -> Iterator[object]:
        raise DistNetworkError("Connection reset by peer")

    monkeypatch.setattr(process_group, "rendezvous", broken)
    place = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    for name, value in (place | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ResumableError, match=r"^rank 1 could not join .*reset by peer.*run the same command"):
        process_group.joined()
