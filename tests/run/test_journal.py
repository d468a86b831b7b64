"""A run that stops goes on where it was, with the same bytes; another run on its folder is refused."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import FileLock

import jointquant
from conftest import make_model, small
from jointquant.errors import DamageWarning, InputError, ResumableError
from jointquant.models.stream import ModelStream
from jointquant.run.journal import partial_folder

ROOT = Path(__file__).parents[2]
TINY = ("rotations.r1.steps=3", "rotations.r2.steps=3", "smoothing.alpha=0.5")
STAGES = ("calibrate", "quantize")
NAME = "llama-5GB"
"""Of the model's folder: the model card of an artifact says it."""


def recipe(*changes: str, preset: str = "dartquant") -> jointquant.Recipe:
    return jointquant.load_recipe(preset, small(*TINY, *changes))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


class Acts:
    """Progress that does something once so many steps of a stage are done."""

    def __init__(self, stage: str, steps: int, act: Callable[[], None]) -> None:
        self.wanted, self.steps, self.act = stage, steps, act

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Acts]:
        self.name, self.done = name, 0
        yield self

    def advance(self, steps: int = 1) -> None:
        self.done += steps
        if self.name == self.wanted and self.done == self.steps and steps:
            self.act()


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.fixture
def model(save_model) -> Path:
    folder: Path = save_model("llama")
    assert folder.name == NAME
    return folder


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tokenizer) -> dict[str, bytes]:
    """The bytes that a run makes of the same model when nothing happens."""
    folder = tmp_path_factory.mktemp("undisturbed")
    model = folder / NAME
    make_model("llama").save_pretrained(model)
    tokenizer.save_pretrained(model)
    jointquant.quantize(model, folder / "out", recipe())
    return contents(folder / "out")


def test_an_interrupted_refinement_goes_on(model: Path, tmp_path: Path) -> None:
    """The unquantized model's states are not saved: they are made anew up to where the run stopped."""
    changes = ("smoothing.alpha=null", "refinement.steps=2", "kv_cache.balancing=full", "activations.centring=mean")
    jointquant.quantize(model, tmp_path / "undisturbed", recipe(*changes))
    with pytest.raises(KeyboardInterrupt):
        jointquant.quantize(model, tmp_path / "out", recipe(*changes), progress=Acts("quantize", 2, interrupt))
    assert jointquant.quantize(model, tmp_path / "out", recipe(*changes)).resumed
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")


@pytest.mark.parametrize("family", ["opt", "gemma2"])
@pytest.mark.parametrize("stage", STAGES)
def test_gains_that_are_kept_are_kept_behind_a_stop(family: str, stage: str, save_model, tmp_path: Path) -> None:
    """Without R1, and smoothed: both passes leave the norms' gains where they are, and so do those that go on."""
    folder = save_model(family)
    chosen = jointquant.load_recipe("rtn", small("smoothing.alpha=0.5", "refinement.steps=2"))
    jointquant.quantize(folder, tmp_path / "undisturbed", chosen)
    with pytest.raises(KeyboardInterrupt):
        jointquant.quantize(folder, tmp_path / "out", chosen, progress=Acts(stage, 2, interrupt))
    assert jointquant.quantize(folder, tmp_path / "out", chosen).resumed
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_an_interrupted_run_goes_on(stage: str, steps: int, model: Path, tmp_path: Path, undisturbed) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        jointquant.quantize(model, out, recipe(), progress=Acts(stage, steps, interrupt))
    assert not out.exists()
    seen: list[str] = []
    result = jointquant.quantize(model, out, recipe(), progress=Acts("calibrate", 3, lambda: seen.append("walked")))
    assert result.resumed
    assert contents(out) == undisturbed
    assert not partial_folder(out).exists()


@pytest.mark.parametrize(
    "preset",
    ["exp-independent", "rtn", "joint-range", "fast"],
    ids=["r1 of every layer", "nothing learned", "sensitivity", "a walk of some windows"],
)
@pytest.mark.parametrize("stage", STAGES)
def test_every_kind_of_state_is_kept(preset: str, stage: str, model: Path, tmp_path: Path) -> None:
    changes = [] if preset == "rtn" else ["rotations.r1.steps=3", "rotations.r2.steps=3"]
    if preset == "joint-range":
        changes += ["rotations.r1.weights=sensitivity"]
    if preset == "fast":
        changes += ["calibration.rotation_samples=2"]
    settings = jointquant.load_recipe(preset, small(*changes))
    jointquant.quantize(model, tmp_path / "a", settings)
    try:
        jointquant.quantize(model, tmp_path / "b", settings, progress=Acts(stage, 2, interrupt))
    except KeyboardInterrupt:
        assert jointquant.quantize(model, tmp_path / "b", settings).resumed
    else:
        assert (preset, stage) == ("rtn", "calibrate")  # there is no walk to interrupt
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_six_kills() -> None:
    script = ROOT / "benchmarks" / "kill_and_resume.py"
    options = ["--kills", "6", "--layers", "3", "--recipes", "dartquant", "--ranks", "1", "--no-result"]
    command = [sys.executable, str(script), *options]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=one_thread)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["kills"] >= 6
    assert result["different"] == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["weights.num_bits=3"], "recipe.weights.num_bits was 4, now 3"),
        (["calibration.seed=5"], "recipe.calibration.seed was 0, now 5"),
    ],
)
def test_another_recipe_is_refused(changes: list[str], message: str, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        jointquant.quantize(model, out, recipe(), progress=Acts("calibrate", 2, interrupt))
    before = contents(tmp_path)
    with pytest.raises(InputError, match=f"unfinished run.*{message}.*`overwrite=True`"):
        jointquant.quantize(model, out, recipe(*changes))
    assert contents(tmp_path) == before
    result = jointquant.quantize(model, out, recipe(*changes), overwrite=True)
    assert not result.resumed


def test_another_model_is_refused(model: Path, save_model, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        jointquant.quantize(model, out, recipe(), progress=Acts("calibrate", 2, interrupt))
    os.utime(model / "model.safetensors", ns=(1, 1))
    with pytest.raises(InputError, match=r"model\.shards\.model\.safetensors was"):
        jointquant.quantize(model, out, recipe())


def test_two_runs_do_not_share_a_folder(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    partial_folder(out).mkdir()
    with FileLock(partial_folder(out) / "lock"), pytest.raises(InputError, match="another run is filling"):
        jointquant.quantize(model, out, recipe())
    jointquant.quantize(model, out, recipe())


@contextmanager
def little_room(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("room", [10_000, 20_000, 150_000])
def test_a_full_disk_is_named_and_the_run_goes_on(room: int, model: Path, tmp_path: Path, undisturbed) -> None:
    """The limit on a file's size stands for the disk's: samples, hidden states or shards do not fit."""
    out = tmp_path / "out"
    with little_room(room), pytest.raises(ResumableError, match="the disk is full: no room for"):
        jointquant.quantize(model, out, recipe())
    jointquant.quantize(model, out, recipe())
    assert contents(out) == undisturbed


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("what", ["changed", "vanished"])
def test_shards_that_do_not_stay(stage: str, what: str, model: Path, tmp_path: Path, undisturbed) -> None:
    out, shard, aside = tmp_path / "out", model / "model.safetensors", model / "aside"
    times = shard.stat()

    def act() -> None:
        shard.rename(aside) if what == "vanished" else os.utime(shard, ns=(1, 1))

    with pytest.raises(ResumableError, match=f"model.safetensors {what} while the model was being read"):
        jointquant.quantize(model, out, recipe(), progress=Acts(stage, 1, act))
    if what == "vanished":
        aside.rename(shard)
    os.utime(shard, ns=(times.st_atime_ns, times.st_mtime_ns))
    jointquant.quantize(model, out, recipe())
    assert contents(out) == undisturbed


def test_a_worker_that_dies(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed) -> None:
    out, read = tmp_path / "out", ModelStream.read_layer

    def fails(self: ModelStream, index: int, *device: object) -> object:
        if index == 2:
            raise MemoryError("no memory to read ahead")
        return read(self, index, *device)  # type: ignore[arg-type]

    monkeypatch.setattr(ModelStream, "read_layer", fails)
    with pytest.raises(MemoryError, match="read ahead"):
        jointquant.quantize(model, out, recipe())
    monkeypatch.undo()
    assert jointquant.quantize(model, out, recipe()).resumed
    assert contents(out) == undisturbed


def test_a_shard_that_has_gone_is_written_again(model: Path, tmp_path: Path, undisturbed) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        jointquant.quantize(model, out, recipe(), progress=Acts("quantize", 2, interrupt))
    (partial_folder(out) / "artifact" / "model-00001-of-00005.safetensors").unlink()
    with pytest.warns(DamageWarning, match="artifact/model-00001-of-00005.safetensors is not what was written"):
        jointquant.quantize(model, out, recipe())
    assert contents(out) == undisturbed


def test_a_last_line_cut_off_never_happened(model: Path, tmp_path: Path, undisturbed) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        jointquant.quantize(model, out, recipe(), progress=Acts("quantize", 2, interrupt))
    journal = partial_folder(out) / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-20])
    jointquant.quantize(model, out, recipe())
    assert contents(out) == undisturbed


@pytest.mark.parametrize("removals", [0, 1, 3, 5])
def test_killed_while_clearing_up(removals: int, model: Path, tmp_path: Path, monkeypatch, undisturbed) -> None:
    out, unlink, left = tmp_path / "out", Path.unlink, [removals]

    def killed(self: Path, missing_ok: bool = False) -> None:
        if self.parent == partial_folder(out) and out.exists():
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
        unlink(self, missing_ok)

    monkeypatch.setattr(Path, "unlink", killed)
    with pytest.raises(KeyboardInterrupt):
        jointquant.quantize(model, out, recipe())
    monkeypatch.undo()
    assert contents(out) == undisturbed
    if (partial_folder(out) / "complete.json").exists():
        assert jointquant.quantize(model, out, recipe()).artifact == str(out)
    assert not partial_folder(out).exists()


def test_ctrl_c_says_how_to_go_on(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    calib = ROOT / "src" / "jointquant" / "demo" / "calibration.txt"
    options = ["--calib", str(calib), "--num-samples", "256", "--seqlen", "64", "--recipe", "dartquant"]
    command = [sys.executable, "-m", "jointquant", "quantize", str(model), "--out", str(out), *options]
    journal = partial_folder(out) / "journal.jsonl"
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    while not journal.exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert err.splitlines()[-2:] == ["run the same command again: it goes on where it was", "interrupted"]
    assert journal.exists()
