"""Whatever becomes of an unfinished run's files: it goes on to the same bytes, or is refused. Never other bytes."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import jointquant
from conftest import DEMO, make_model, small
from jointquant.errors import DamageWarning, InputError
from jointquant.run.journal import JOURNAL_NAME, partial_folder
from jointquant.runtime.loading import load_tokenizer
from mutations import EXAMPLES, drawn, flip

STOPS = (("calibrate", 1), ("calibrate", 3), ("quantize", 1), ("quantize", 2), ("quantize", 3))
"""Where the run is stopped: DAMAGE_EXAMPLES=60 makes 300 examples of these five."""
RECIPE = jointquant.load_recipe(
    "dartquant", small("rotations.r1.steps=2", "rotations.r2.steps=2", "calibration.num_samples=2")
)


class Interrupts:
    """Progress that stops the work once so many steps of a stage are done."""

    def __init__(self, stage: str, steps: int) -> None:
        self.wanted, self.steps = stage, steps

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Interrupts]:
        self.name, self.done = name, 0
        yield self

    def advance(self, steps: int = 1) -> None:
        self.done += steps
        if self.name == self.wanted and self.done == self.steps:
            raise KeyboardInterrupt


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, its artifact, and a working folder for each place where the run was stopped."""
    folder = tmp_path_factory.mktemp("damage")
    make_model("llama", num_hidden_layers=3).save_pretrained(folder / "m")
    load_tokenizer(DEMO / "model").save_pretrained(folder / "m")
    jointquant.quantize(folder / "m", folder / "whole", RECIPE)
    for number, stop in enumerate(STOPS):
        with pytest.raises(KeyboardInterrupt):
            jointquant.quantize(folder / "m", folder / "out", RECIPE, progress=Interrupts(*stop))
        partial_folder(folder / "out").rename(folder / f"stopped-{number}")
    return folder


def resumed(place: Path, stop: int, damage: object = None) -> str:
    """What becomes of the stopped run once ``damage(folder)`` was done: ``same`` or ``refused``."""
    out, folder = place / "out", partial_folder(place / "out")
    for path in (out, folder):
        shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(place / f"stopped-{stop}", folder)
    if callable(damage):
        damage(folder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DamageWarning)
            jointquant.quantize(place / "m", out, RECIPE)
    except InputError:
        return "refused"
    assert contents(out) == contents(place / "whole")
    return "same"


@pytest.mark.parametrize("stop", range(len(STOPS)))
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_bytes_of_any_file(place: Path, stop: int, data: st.DataObject) -> None:
    resumed(place, stop, drawn(data, place / f"stopped-{stop}"))


def lines_of(folder: Path) -> list[bytes]:
    return (folder / JOURNAL_NAME).read_bytes().splitlines(keepends=True)


JOURNALS = {
    "the last line doubled": lambda lines: [*lines, lines[-1]],
    "a line missing": lambda lines: lines[:-2] + lines[-1:],
    "the first line missing": lambda lines: lines[1:],
    "two lines exchanged": lambda lines: [*lines[:-2], lines[-1], lines[-2]],
    "a tail of zeros": lambda lines: [*lines, bytes(4096)],
    "half a line": lambda lines: [*lines, lines[-1][:40]],
    "no line": lambda lines: [],
    "not text": lambda lines: [*lines[:-1], b"\xff\xfe\n"],
}


@pytest.mark.parametrize("stop", [1, 3])
@pytest.mark.parametrize("change", JOURNALS)
def test_journals(change: str, stop: int, place: Path) -> None:
    def damage(folder: Path) -> None:
        (folder / JOURNAL_NAME).write_bytes(b"".join(JOURNALS[change](lines_of(folder))))

    assert resumed(place, stop, damage) == "same"


@pytest.mark.parametrize("name", ["artifact/stray.safetensors", "artifact/config.json", "work/stray", "stray"])
def test_strangers(name: str, place: Path) -> None:
    """A file that no step left is not in the artifact."""

    def damage(folder: Path) -> None:
        (folder / name).write_text("{}")

    assert resumed(place, 3, damage) == "same"


def test_files_of_another_moment(place: Path) -> None:
    """Every file is whole, but hidden states and shards are those of a run that had not come so far."""

    def damage(folder: Path) -> None:
        for path in (place / "stopped-2").rglob("*.bin"):
            shutil.copy(path, folder / path.relative_to(place / "stopped-2"))

    assert resumed(place, 4, damage) == "same"


def test_the_user_is_told_in_one_line(place: Path) -> None:
    out, folder = place / "out", partial_folder(place / "out")
    for path in (out, folder):
        shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(place / "stopped-3", folder)
    shard = next((folder / "artifact").glob("*.safetensors"))
    shard.write_bytes(flip(bytearray(shard.read_bytes()), 100, 101))
    with pytest.warns(DamageWarning, match=r"safetensors is not what was written: what came after it") as told:
        jointquant.quantize(place / "m", out, RECIPE)
    assert not any("\n" in str(warning.message) for warning in told if warning.category is DamageWarning)
    assert contents(out) == contents(place / "whole")


def test_undisturbed_steps_are_not_done_again(place: Path) -> None:
    """The check itself can fail: without damage a stopped run does not begin again."""
    out, folder = place / "out", partial_folder(place / "out")
    for path in (out, folder):
        shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(place / "stopped-3", folder)
    seen = []

    class Sees(Interrupts):
        def advance(self, steps: int = 1) -> None:
            seen.append((self.name, steps))

    with warnings.catch_warnings():
        warnings.simplefilter("error", DamageWarning)
        assert jointquant.quantize(place / "m", out, RECIPE, progress=Sees("", 0)).resumed
    assert ("calibrate", 1) not in seen
    assert seen[0] == ("quantize", 2) or ("quantize", 2) in seen


def test_a_model_that_changed_with_the_same_size_and_date(place: Path) -> None:
    """What the run has read is looked at again: two models never become one artifact."""
    model, out, folder = place / "m", place / "out", partial_folder(place / "out")
    for path in (out, folder):
        shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(place / "stopped-3", folder)
    shard = model / "model.safetensors"
    before, status = shard.read_bytes(), shard.stat()
    size = int.from_bytes(before[:8], "little")
    header = json.loads(before[8 : 8 + size])
    for name in ("model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight"):
        at = 8 + size + header[name]["data_offsets"][0]
        shard.write_bytes(before[:at] + bytes([before[at] ^ 0x01]) + before[at + 1 :])
        os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns))
        with pytest.raises(InputError, match=f"tensor {name} of .* is not what the unfinished run"):
            jointquant.quantize(model, out, RECIPE)
    shard.write_bytes(before)
    os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert jointquant.quantize(model, out, RECIPE).resumed
    assert contents(out) == contents(place / "whole")


def test_other_threads_are_another_run(place: Path) -> None:
    import torch

    out, folder = place / "out", partial_folder(place / "out")
    for path in (out, folder):
        shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(place / "stopped-3", folder)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        with pytest.raises(InputError, match=rf"threads was {threads}, now {threads + 1}"):
            jointquant.quantize(place / "m", out, RECIPE)
    finally:
        torch.set_num_threads(threads)
