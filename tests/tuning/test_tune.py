"""An artifact that is tuned is nearer to its model, and nothing but what was trained is another."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import jointquant
from conftest import WRAPPED, make_model, possible, small
from jointquant import TuneSettings
from jointquant.errors import DamageWarning, InputError
from jointquant.evaluation.divergence import Divergence
from jointquant.export.artifact import Artifact
from jointquant.run.journal import partial_folder
from jointquant.tuning.kept import Kept
from jointquant.verification.verify import verify
from wrappers import make_wrapper

SETTINGS = TuneSettings(epochs=6, batch_tokens=64, rates={"scales": 3e-3, "biases": 3e-3, "means": 1e-3, "clips": 3e-3})
RECIPE = ("weights.method=rtn", "activations.centring=mean", "activations.clip_ratio=search")
TRAINED = ("weight_scale", "bias", "input_mean", "input_clip_ratio")


@pytest.fixture
def made(save_model, tmp_path: Path) -> tuple[Path, Path]:
    """A model and its artifact."""
    model = save_model("llama")
    jointquant.quantize(model, tmp_path / "a", jointquant.load_recipe("quarot", [*small(), *RECIPE]))
    return model, tmp_path / "a"


def test_what_is_trained_is_nearer_and_all_else_is_as_it_was(made, tmp_path: Path) -> None:
    model, artifact = made
    result = jointquant.tune(artifact, model, tmp_path / "t", settings=SETTINGS)
    assert result.after.mean < 0.97 * result.before.mean
    assert len(result.losses) == 6 * (result.windows // (64 // result.seqlen))
    old, new = (Artifact.open(folder).stored for folder in (artifact, tmp_path / "t"))
    assert old.shapes() == new.shapes()
    for name in old.shapes():
        same = torch.equal(old.load(name), new.load(name))
        assert old.kind(name) == new.kind(name), name
        assert same or name.endswith(TRAINED), name
        assert not same or not name.endswith("weight_scale"), name


def test_the_artifact_says_what_was_done_and_verifies(made, tmp_path: Path) -> None:
    model, artifact = made
    first = jointquant.tune(artifact, model, tmp_path / "t", settings=SETTINGS)
    second = jointquant.tune(tmp_path / "t", model, tmp_path / "t2", settings=SETTINGS)
    facts = json.loads((tmp_path / "t2" / "config.json").read_text())["quantization_config"]["tuned"]
    assert [fact["kl_after"] for fact in facts] == [first.after.mean, second.after.mean]
    assert facts[1]["kl_before"] == pytest.approx(first.after.mean, rel=1e-5)
    assert facts[0]["rates"] == SETTINGS.rates
    card = (tmp_path / "t2" / "README.md").read_text()
    assert f"| {first.before.mean:.4f} → {first.after.mean:.4f} nats from its model, on other windows |" in card
    assert str(tmp_path.parent) not in card
    assert "of calibration.txt" in card
    assert verify(tmp_path / "t2").passed


def test_the_same_seed_gives_the_same_bytes(made, tmp_path: Path) -> None:
    model, artifact = made
    for name in ("one", "two"):
        jointquant.tune(artifact, model, tmp_path / name, settings=SETTINGS)
    same_files(tmp_path / "one", tmp_path / "two")


def test_one_that_comes_no_nearer_is_not_written(made, tmp_path: Path) -> None:
    model, artifact = made
    wild = TuneSettings(epochs=1, batch_tokens=64, rates={"scales": 5.0})
    with pytest.raises(InputError, match=r"nothing was written, expected more windows \(`num_samples`\)"):
        jointquant.tune(artifact, model, tmp_path / "t", settings=wild)
    assert not (tmp_path / "t").exists()


def test_what_cannot_be_tuned_is_refused_with_a_way_out(made, save_model, tmp_path: Path) -> None:
    model, artifact = made
    with pytest.raises(InputError, match="larger `memory_budget`"):
        jointquant.tune(artifact, model, tmp_path / "t", memory_budget="1MB")
    with pytest.raises(InputError, match="inside it: expected another folder"):
        jointquant.tune(artifact, model, artifact / "t")
    with pytest.raises(InputError, match="is no artifact"):
        jointquant.tune(model, model, tmp_path / "t")
    plain = tmp_path / "plain"
    jointquant.quantize(model, plain, jointquant.load_recipe("fp16", small()))
    with pytest.raises(InputError, match="has no packed weights"):
        jointquant.tune(plain, model, tmp_path / "t")


@pytest.mark.parametrize("family", ["qwen3", "mixtral", "deepseek_v3", "qwen3_5_text", "llava"])
def test_what_is_written_is_what_was_measured(family: str, tokenizer, tmp_path: Path, monkeypatch) -> None:
    """One matrix for both ends, experts, latents, recurrent layers, and a text model inside another."""
    wrapped = family in WRAPPED
    source = make_wrapper(family) if wrapped else make_model(family)
    source.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    changes = small("weights.method=rtn") if wrapped else possible(family, *small("weights.method=rtn"))
    jointquant.quantize(tmp_path / "model", tmp_path / "a", "quarot", changes=changes)
    seen: dict[str, object] = {}

    def remembered(models, windows, name, progress):
        seen.update(windows=windows, logits=logits_of(models[0], windows))
        return far if name.endswith("before") else near

    far, near = (Divergence(mean, None, mean, mean, mean, 0.5) for mean in (2.0, 1.0))
    monkeypatch.setattr("jointquant.tuning.tune.divergence_of", remembered)  # on few windows chance would judge
    settings = TuneSettings(epochs=1, batch_tokens=64, rates={"scales": 3e-3})
    result = jointquant.tune(tmp_path / "a", tmp_path / "model", tmp_path / "t", settings=settings)
    assert (result.before, result.after) == (far, near)
    loaded = jointquant.load(tmp_path / "t", dtype="float32", kernels="reference")
    assert torch.equal(logits_of(loaded, seen["windows"]), seen["logits"])
    first = jointquant.load(tmp_path / "a", dtype="float32", kernels="reference")
    assert not torch.equal(logits_of(first, seen["windows"]), seen["logits"])


@torch.no_grad()
def logits_of(model, windows: torch.Tensor) -> torch.Tensor:
    return model(input_ids=windows, use_cache=False).logits


class StoppedError(RuntimeError):
    """In the place of a kill."""


def stop_behind(monkeypatch: pytest.MonkeyPatch, step: int, tuning: Callable[[], object]) -> None:
    """Let a tuning be stopped behind a step, whose state was kept."""
    keep = Kept.keep_when_due

    def stopping(kept: Kept, optimizer: torch.optim.Optimizer, losses: list[float]) -> None:
        keep(kept, optimizer, losses)
        if len(losses) == step:
            raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr("jointquant.tuning.kept.LEAST_SECONDS", 0.0)
        patch.setattr("jointquant.tuning.kept.SHARE", 0)
        patch.setattr(Kept, "keep_when_due", stopping)
        with pytest.raises(StoppedError):
            tuning()


def test_a_stopped_run_goes_on_to_the_same_bytes(made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, artifact = made
    straight = jointquant.tune(artifact, model, tmp_path / "one", settings=SETTINGS)
    stop_behind(monkeypatch, 5, lambda: jointquant.tune(artifact, model, tmp_path / "two", settings=SETTINGS))
    assert not (tmp_path / "two").exists()
    steps = steps_done(monkeypatch)
    resumed = jointquant.tune(artifact, model, tmp_path / "two", settings=SETTINGS)
    assert steps == [*range(6, len(straight.losses) + 1)]
    assert (resumed.losses, resumed.after) == (straight.losses, straight.after)
    same_files(tmp_path / "one", tmp_path / "two")
    assert not partial_folder(tmp_path / "two").exists()


def steps_done(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps that trainings do from now on."""
    steps: list[int] = []
    keep = Kept.keep_when_due
    monkeypatch.setattr(Kept, "keep_when_due", lambda *given: (steps.append(len(given[2])), keep(*given)))
    return steps


@pytest.mark.parametrize(("damaged", "first"), [([4], 5), ([3, 4], 1)])
def test_a_damaged_state_costs_what_came_after_the_one_before(
    made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: list[int], first: int
) -> None:
    model, artifact = made
    straight = jointquant.tune(artifact, model, tmp_path / "one", settings=SETTINGS)
    stop_behind(monkeypatch, 5, lambda: jointquant.tune(artifact, model, tmp_path / "two", settings=SETTINGS))
    for step in damaged:  # kept by turns, the first step's in the first file
        state = partial_folder(tmp_path / "two") / "work" / f"state-{step % 2}.safetensors"
        state.write_bytes(state.read_bytes()[:-1] + b"?")
    with monkeypatch.context() as patch:  # killed again, before a state is kept
        patch.setattr("jointquant.tuning.tune.train", killed)
        with pytest.raises(StoppedError), pytest.warns(DamageWarning, match="is not what was written"):
            jointquant.tune(artifact, model, tmp_path / "two", settings=SETTINGS)
    steps = steps_done(monkeypatch)
    with pytest.warns(DamageWarning, match="is not what was written"):
        again = jointquant.tune(artifact, model, tmp_path / "two", settings=SETTINGS)
    assert steps == [*range(first, len(straight.losses) + 1)]
    assert again.losses == straight.losses
    same_files(tmp_path / "one", tmp_path / "two")


def same_files(one: Path, two: Path) -> None:
    for path in sorted(one.iterdir()):
        if path.name != "manifest.json":
            assert path.read_bytes() == (two / path.name).read_bytes(), path.name


def killed(*_: object) -> None:
    raise StoppedError


def test_another_run_is_not_gone_on_with(made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, artifact = made
    stop_behind(monkeypatch, 2, lambda: jointquant.tune(artifact, model, tmp_path / "t", settings=SETTINGS))
    other = TuneSettings(epochs=2, batch_tokens=64, rates={"scales": 3e-3})
    with pytest.raises(InputError, match=r"an unfinished run for .* is another one: settings.epochs was 6, now 2"):
        jointquant.tune(artifact, model, tmp_path / "t", settings=other)
    jointquant.tune(artifact, model, tmp_path / "t", settings=other, overwrite=True)
    jointquant.tune(artifact, model, tmp_path / "t", settings=other, overwrite=True)


def test_a_run_that_was_killed_behind_its_end_is_not_done_again(
    made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, artifact = made
    with monkeypatch.context() as patch:
        patch.setattr("jointquant.run.journal._clear", killed)
        with pytest.raises(StoppedError):
            jointquant.tune(artifact, model, tmp_path / "t", settings=SETTINGS)
    assert (tmp_path / "t").is_dir()
    monkeypatch.setattr("jointquant.tuning.tune.train", killed)
    found = jointquant.tune(artifact, model, tmp_path / "t", settings=SETTINGS)
    fact = json.loads((tmp_path / "t" / "config.json").read_text())["quantization_config"]["tuned"][0]
    assert (found.before.mean, found.after.mean) == (fact["kl_before"], fact["kl_after"])
    assert not partial_folder(tmp_path / "t").exists()
