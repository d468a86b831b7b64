"""Bad and hostile input through the command line: exit 2, one line, nothing run, nothing written, no waiting."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import jointquant
from commands import assert_refused, run
from conftest import DEMO, make_model
from hostile.artifacts import ARTIFACTS
from hostile.cases import ARGUMENTS, CHECKPOINTS, CONFIGURATIONS, FILES, PICKLES
from hostile.damage import own_code, shards, to_pickle
from jointquant.files.manifest import write_manifest
from jointquant.runtime.loading import load_tokenizer
from texts import TEXTS

QUICK = ["--calib", str(TEXTS / "calibration.txt"), "--num-samples", "2", "--seqlen", "32"]
MODELS = CHECKPOINTS | CONFIGURATIONS
TEXT = str(TEXTS / "heldout.txt")
SECONDS = 60


@pytest.fixture(autouse=True)
def no_waiting() -> Iterator[None]:
    """A test that hangs fails."""

    def expired(number: int, frame: object) -> None:
        raise TimeoutError(f"not done after {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, expired)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def sound_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound") / "model"
    make_model("llama").save_pretrained(folder)
    load_tokenizer(DEMO / "model").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sound_artifact(sound_model: Path) -> Path:
    assert (
        run("quantize", str(sound_model), "--out", str(sound_model.parent / "int4"), "--recipe", "quarot", *QUICK) == 0
    )
    return sound_model.parent / "int4"


@pytest.fixture
def model(sound_model: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(sound_model, tmp_path / "model"))


def quantize(model: Path, *more: str) -> list[str]:
    return ["quantize", str(model), "--out", str(model.parent / "o" / "out"), "--recipe", "rtn", *QUICK, *more]


Refused = Callable[[list[str], str], None]


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Asserts that a command is refused with one line, and that it leaves no file or folder behind."""

    def check(arguments: list[str], message: str) -> None:
        assert_refused(arguments, message, capsys, tmp_path)

    return check


@pytest.mark.parametrize("name", MODELS)
def test_models(name: str, model: Path, refused: Refused) -> None:
    damage, message = MODELS[name]
    damage(model)
    refused(quantize(model), message)


@pytest.mark.parametrize("name", PICKLES)
def test_pickles(name: str, model: Path, refused: Refused) -> None:
    damage, flags, message = PICKLES[name]
    damage(model)
    refused(quantize(model, *flags), message)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments(name: str, model: Path, refused: Refused) -> None:
    if name == "absent device" and torch.accelerator.is_available():
        pytest.skip("this machine has an accelerator")
    flags, message = ARGUMENTS[name]
    refused(quantize(model, *flags), message)


@pytest.mark.parametrize("name", FILES)
def test_files(name: str, model: Path, tmp_path: Path, refused: Refused) -> None:
    option, make, file, message = FILES[name]
    make(tmp_path)
    path = str(tmp_path / file)
    refused(quantize(model, *([option, path] if option.startswith("--") else ["--set", f"{option}={path}"])), message)


@pytest.mark.parametrize("name", ARTIFACTS)
def test_artifacts(name: str, sound_artifact: Path, tmp_path: Path, refused: Refused) -> None:
    damage, message = ARTIFACTS[name]
    artifact = Path(shutil.copytree(sound_artifact, tmp_path / "artifact"))
    damage(artifact)
    evaluation = ["eval", str(artifact), "--text", TEXT, "--seqlen", "8", "--max-tokens", "16"]
    refused([*evaluation, "--no-verify"], message)  # as if whoever made it had written its digests, too
    generation = ["generate", str(artifact), "--prompt", "x", "--max-new-tokens", "1"]
    refused(generation, f"{message}|is not what was written")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--prompt", ""], "no tokens"),
        (["--prompt", "x", "--max-new-tokens", "1000000000"], "more than the model's 64 positions"),
        (["--prompt", "x", "--max-new-tokens", "0"], "--max-new-tokens"),
        (["--prompt", "x", "--temperature", "nan"], "temperature"),
        (["--prompt", "x", "--temperature", "inf"], "temperature"),
        (["--prompt", "x", "--seed", str(1 << 70)], "--seed"),
    ],
)
def test_generate(flags: list[str], message: str, model: Path, refused: Refused) -> None:
    refused(["generate", str(model), *flags], message)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--text", "nowhere.txt"], "no such text"),
        (["--text", TEXT, "--seqlen", "1"], "at least 2"),
        (["--text", TEXT, "--seqlen", str(10**30)], "longer than the model's 64 positions"),
        (["--text", TEXT, "--max-tokens", "5", "--seqlen", "8"], "too short"),
        (["--text", TEXT, "--num-fewshot", "1"], "are for tasks"),
    ],
)
def test_eval(flags: list[str], message: str, model: Path, refused: Refused) -> None:
    refused(["eval", str(model), *flags], message)


def test_no_such_model(tmp_path: Path, refused: Refused) -> None:
    for verb in (["quantize", "--out", str(tmp_path / "out")], ["eval"], ["generate", "--prompt", "x"]):
        refused([verb[0], str(tmp_path / "none"), *verb[1:]], "no such model")
        refused([verb[0], "n" * 5000, *verb[1:]], "no such model")
    (tmp_path / "file").write_text("")
    refused(["eval", str(tmp_path / "file")], "is a file")


OUTPUTS: dict[str, tuple[Callable[[Path], Path], list[str], str]] = {
    "the model": (lambda root: root / "model", ["--overwrite"], "has no manifest of jointquant"),
    "the model without a config": (lambda root: root / "model", [], "is not empty"),
    "inside the model": (lambda root: root / "model" / "int4", [], "is the model's folder or inside it"),
    "a file": (lambda root: touched(root / "file"), ["--overwrite"], "is a file"),
    "under a file": (lambda root: touched(root / "file") / "out", [], "which is a file"),
    "a link": (lambda root: linked(root / "link", root / "elsewhere"), [], "is a link"),
    "a link that dangles": (lambda root: linked(root / "link", root / "nowhere"), [], "is a link"),
    "the model by a link": (lambda root: linked(root / "link", root / "model") / "int4", [], "or inside it"),
    "a long name": (lambda root: root / ("o" * 300), [], "expected at most 200"),
    "under a long name": (lambda root: root / ("o" * 300) / "out", [], "expected at most 200"),
    "no name": (lambda root: Path("."), [], "no name of a folder"),
    "the root": (lambda root: Path("/"), ["--overwrite"], "no name of a folder"),
    "a folder of others": (
        lambda root: touched(root / "home" / "mine").parent,
        ["--overwrite"],
        "has no manifest of jointquant",
    ),
    "a pipe": (lambda root: piped(root / "pipe"), ["--overwrite"], "is a file"),
}


def touched(path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.touch()
    return path


def linked(path: Path, target: Path) -> Path:
    if target.name == "elsewhere":
        target.mkdir()
    path.symlink_to(target)
    return path


def piped(path: Path) -> Path:
    os.mkfifo(path)
    return path


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs(name: str, model: Path, tmp_path: Path, refused: Refused) -> None:
    out, flags, message = OUTPUTS[name]
    refused(["quantize", str(model), "--out", str(out(tmp_path)), "--recipe", "rtn", *QUICK, *flags], message)


def test_the_folder_that_holds_the_model_is_no_output(sound_artifact: Path, model: Path, refused: Refused) -> None:
    """It looks like an earlier output, and replacing it would remove the model."""
    shutil.copy(sound_artifact / "config.json", model.parent)
    write_manifest(model.parent)
    arguments = ["quantize", str(model), "--out", str(model.parent), "--recipe", "rtn", *QUICK, "--overwrite"]
    refused(arguments, "contains the model's folder")


def test_at_least_sixty_kinds() -> None:
    tables = (MODELS, PICKLES, ARGUMENTS, FILES, ARTIFACTS, OUTPUTS)
    assert sum(map(len, tables)) >= 60


def test_code_beside_a_known_model_is_never_run(model: Path, tmp_path: Path) -> None:
    """Phi 3 and others are published with code for transformers of old; the family's own classes are used."""
    own_code(AutoConfig="own.C", AutoModelForCausalLM="own.C", AutoTokenizer=["own.C", "own.C"])(model)
    out = tmp_path / "out"
    assert run("quantize", str(model), "--out", str(out), "--recipe", "rtn", *QUICK) == 0
    for folder in (model, out):
        assert run("eval", str(folder), "--text", TEXT, "--seqlen", "8", "--max-tokens", "16") == 0
        assert run("generate", str(folder), "--prompt", "x", "--max-new-tokens", "1") == 0
    assert not list(tmp_path.rglob("owned"))
    assert not list(out.glob("*.py"))


@pytest.mark.parametrize("form", ["one file", "shards"])
def test_pickles_that_are_allowed_give_the_same_artifact(form: str, model: Path, tmp_path: Path) -> None:
    jointquant.quantize(model, tmp_path / "from-safetensors", settings())
    to_pickle(model) if form == "one file" else pickle_shards(model)
    jointquant.quantize(model, tmp_path / "from-pickle", settings(), allow_pickle=True)
    files = sorted(path.name for path in (tmp_path / "from-safetensors").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "from-pickle").iterdir())
    for name in files:
        assert (tmp_path / "from-pickle" / name).read_bytes() == (tmp_path / "from-safetensors" / name).read_bytes()
    flags = ["--text", TEXT, "--seqlen", "8", "--max-tokens", "16"]
    assert run("eval", str(model), *flags, "--allow-pickle") == 0
    assert run("eval", str(model), *flags) == 2


def settings() -> jointquant.Recipe:
    changes = [f"calibration.source={TEXTS / 'calibration.txt'}", "calibration.num_samples=2", "calibration.seqlen=32"]
    return jointquant.load_recipe("rtn", changes)


def pickle_shards(folder: Path) -> None:
    """The weights as two pickles and an index."""
    shards(folder)
    for name in ("a", "b"):
        torch.save(load_file(folder / f"{name}.safetensors"), folder / f"{name}.bin")
        (folder / f"{name}.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    weight_map = {
        key: name.replace(".safetensors", ".bin") for key, name in json.loads(index.read_text())["weight_map"].items()
    }
    index.unlink()
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_links_inside_a_hub_cache_are_followed(sound_model: Path, tmp_path: Path, refused: Refused) -> None:
    """A cache keeps its files as links from snapshots to blobs of one repository; others' blobs are out of bounds."""
    repository = tmp_path / "models--owner--name"
    snapshot, blobs = repository / "snapshots" / ("0" * 40), repository / "blobs"
    snapshot.mkdir(parents=True)
    shutil.copytree(sound_model, blobs)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(Path("../../blobs") / path.name)
    assert run("quantize", str(snapshot), "--out", str(tmp_path / "out"), "--recipe", "rtn", *QUICK) == 0
    repository.rename(tmp_path / "models--other--name")
    (snapshot).mkdir(parents=True)
    for path in (tmp_path / "models--other--name" / "blobs").iterdir():
        (snapshot / path.name).symlink_to(path)
    refused(quantize(snapshot), "a link out of the model folder")


def test_nobody_else_may_write_an_output(model: Path, tmp_path: Path) -> None:
    """Under a umask of 0, which takes nothing away, in new folders too."""
    before = os.umask(0)
    try:
        out = tmp_path / "new" / "deep" / "out"
        assert run("quantize", str(model), "--out", str(out), "--recipe", "quarot", *QUICK) == 0
        stats = tmp_path / "stats"
        assert run("stats", str(model), "--out", str(stats), "--recipe", "quarot", *QUICK) == 0
    finally:
        os.umask(before)
    made = [tmp_path / "new", tmp_path / "new" / "deep", out, stats, *out.rglob("*"), *stats.rglob("*")]
    for path in made:
        assert not path.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH), path
        assert path.stat().st_mode & stat.S_IROTH, path


def test_a_narrower_umask_is_kept(model: Path, tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        assert run("quantize", str(model), "--out", str(tmp_path / "out"), "--recipe", "rtn", *QUICK) == 0
    finally:
        os.umask(before)
    for path in (tmp_path / "out", *(tmp_path / "out").rglob("*")):
        assert not path.stat().st_mode & 0o077, path
