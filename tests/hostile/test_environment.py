"""What the machine refuses: streams that are closed or full, paths, users and limits; one line each, no traceback."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conftest import DEMO, make_model
from jointquant.cli.boundary import line_of
from jointquant.errors import InputError
from jointquant.models.configuration import blamed
from jointquant.runtime.loading import load_tokenizer
from texts import TEXTS

QUICK = ["--recipe", "rtn", "--calib", str(TEXTS / "calibration.txt"), "--num-samples", "2", "--seqlen", "32"]
NOBODY = 65534


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A folder that every user may read, with a model in it."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    make_model("llama").save_pretrained(folder / "model")
    load_tokenizer(DEMO / "model").save_pretrained(folder / "model")
    for path in (folder / "model").iterdir():
        path.chmod(0o644)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def model(place: Path) -> Path:
    return place / "model"


def jointquant(
    *arguments: str | bytes, before: Callable[[], object] | None = None, **options: object
) -> subprocess.CompletedProcess[bytes]:
    """The command line in a process of its own; ``before`` runs in it first."""
    command = [sys.executable, "-m", "jointquant", *arguments]
    given = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": tempfile.gettempdir()} | options
    return subprocess.run(command, preexec_fn=before, timeout=300, check=False, **given)  # type: ignore[call-overload]


def assert_one_line(ended: subprocess.CompletedProcess[bytes], message: str) -> None:
    said = (ended.stdout or b"") + (ended.stderr or b"")
    lines = [line for line in said.decode(errors="replace").splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, said.decode(errors="replace")
    assert message in lines[0]
    assert b"Traceback" not in said
    assert b"Exception ignored" not in said
    assert ended.returncode == 2


def closing(*numbers: int) -> Callable[[], None]:
    return lambda: [os.close(number) for number in numbers] and None


@pytest.fixture(scope="module")
def whole(place: Path) -> Path:
    """What a run with all its streams makes, to be read only."""
    assert jointquant("quantize", str(place / "model"), "--out", str(place / "whole"), *QUICK).returncode == 0
    return place / "whole"


@pytest.mark.parametrize("numbers", [(0,), (1,), (2,), (0, 1, 2)], ids=str)
def test_streams_that_are_closed(numbers: tuple[int, ...], model: Path, whole: Path, tmp_path: Path) -> None:
    """All is done, and no file gets what was printed."""
    out = tmp_path / "out"
    ended = jointquant("quantize", str(model), "--out", str(out), *QUICK, "--json", before=closing(*numbers))
    assert (ended.returncode, b"Traceback" in ended.stdout + ended.stderr) == (0, False)
    for path in whole.iterdir():
        assert (out / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("arguments", [["recipes"], ["recipes", "rtn"], ["models", "--json"], ["--help"]], ids=str)
def test_an_answer_that_nobody_can_read(arguments: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        assert_one_line(jointquant(*arguments, stdout=full), "standard output cannot be written: No space left")
        told = jointquant(*arguments, stdout=full, stderr=full)
        assert (told.returncode, told.stdout, told.stderr) == (2, None, None)
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as broken:
        assert_one_line(jointquant(*arguments, stdout=broken), "standard output cannot be written: Broken pipe")


def test_progress_that_nobody_can_read(model: Path, tmp_path: Path) -> None:
    with open("/dev/full", "wb") as full:
        ended = jointquant("quantize", str(model), "--out", str(tmp_path / "out"), *QUICK, stderr=full)
    assert ended.returncode == 0
    assert (tmp_path / "out" / "config.json").is_file()


LONG = "/".join(["p" * 199] * 21)
PATHS: dict[str, tuple[list[str | bytes], str]] = {
    "a model of 4,200 bytes": (["eval", LONG], "no such model|File name too long"),
    "an output of 4,200 bytes": (["quantize", "MODEL", "--out", LONG, *QUICK], "File name too long"),
    "a text of 4,200 bytes": (["eval", "MODEL", "--text", f"{LONG}.txt"], "no such text|File name too long"),
    "a recipe of 4,200 bytes": (["quantize", "MODEL", "--out", "o", "--recipe", f"{LONG}.yaml"], "unknown recipe"),
    "an artifact of 4,200 bytes": (["export", LONG, "--format", "dense", "--out", "o"], "no such artifact|too long"),
    "a model that is not UTF-8": ([b"eval", b"caf\xe9"], "'caf\\udce9' is not UTF-8"),
    "an output that is not UTF-8": ([b"quantize", "MODEL", b"--out", b"caf\xe9"], "'caf\\udce9' is not UTF-8"),
    "a prompt that is not UTF-8": ([b"generate", "MODEL", b"--prompt", b"caf\xe9"], "is not UTF-8"),
}


# Runs each command of a list, given as strings with what is not UTF-8 escaped, and prints how it ended and its error.
COMMANDS = """
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout
from jointquant.cli.main import main
found = []
for command in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            main(command)
        except SystemExit as end:
            found.append([end.code, out.getvalue(), err.getvalue()])
json.dump(found, sys.stdout)
"""


def test_paths(model: Path) -> None:
    """One after the other in a process: arguments as the interpreter decodes them."""
    commands = [
        [str(model) if each == "MODEL" else os.fsdecode(each) for each in arguments] for arguments, _ in PATHS.values()
    ]
    run = [sys.executable, "-c", COMMANDS]
    done = subprocess.run(run, input=json.dumps(commands).encode(), capture_output=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    for command, (status, out, err), (_, messages) in zip(commands, results, PATHS.values(), strict=True):
        ended = subprocess.CompletedProcess(
            command, status, out.encode("utf-8", "replace"), err.encode("utf-8", "replace")
        )
        assert_one_line(ended, next((message for message in messages.split("|") if message in err), messages))


def test_an_argument_of_bytes(model: Path) -> None:
    """As a shell hands it over."""
    assert_one_line(jointquant(b"quantize", os.fsencode(model), b"--out", b"caf\xe9"), "'caf\\udce9' is not UTF-8")


DROPPING = """
import json, os, resource, sys
from jointquant.cli.main import main
warm, command, limit, value = json.loads(sys.argv[1])
try:
    main(warm)  # imports what is needed, which another user may not be allowed to read
except SystemExit as ended:
    assert not ended.code, "the command that warms up failed"
if limit != "memory":
    os.setegid(65534)
    os.seteuid(65534)
if limit == "memory":
    size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + value, size + value))
if limit == "processes":
    resource.setrlimit(resource.RLIMIT_NPROC, (value, value))
main(command)
"""


def limited(warm: list[str], command: list[str], limit: str, value: int = 0) -> subprocess.CompletedProcess[bytes]:
    """A command of an unprivileged user, or under a limit, in a process that ran another one before."""
    asked = json.dumps([warm, command, limit, value])
    run = [sys.executable, "-c", DROPPING, asked]
    return subprocess.run(run, capture_output=True, timeout=300, check=False, cwd=tempfile.gettempdir())


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")


def evaluation(model: Path) -> list[str]:
    return ["eval", str(model), "--text", str(TEXTS / "heldout.txt"), "--seqlen", "8", "--max-tokens", "64"]


@needs_root
@pytest.mark.parametrize(("name", "mode"), [("unlisted", 0o711), ("closed", 0o700)])
def test_a_model_that_may_not_be_listed(name: str, mode: int, place: Path) -> None:
    folder = Path(shutil.copytree(place / "model", place / name))
    folder.chmod(mode)
    assert_one_line(limited(evaluation(place / "model"), evaluation(folder), "user"), "Permission denied")


@needs_root
def test_a_working_folder_that_root_left(place: Path) -> None:
    home = place / "home"
    (home / ".out.partial").mkdir(mode=0o700, parents=True)
    os.chown(home, NOBODY, NOBODY)
    command = ["quantize", str(place / "model"), "--out", str(home / "out"), *QUICK]
    warm = ["quantize", str(place / "model"), "--out", str(place / "warm"), *QUICK]
    assert_one_line(limited(warm, command, "user"), ".out.partial")


@needs_root
def test_few_processes(model: Path) -> None:
    """It runs with the threads that it has, or says in one line that it needs more."""
    ended = limited(evaluation(model), evaluation(model), "processes", 8)
    assert b"Traceback" not in ended.stderr
    assert ended.returncode in (0, 2)


def test_little_memory_is_not_the_configurations_fault(model: Path) -> None:
    """Far less than the model and its text take."""
    ended = limited(evaluation(model), evaluation(model), "memory", 0)
    assert b"Traceback" not in ended.stderr
    assert b"configuration" not in ended.stderr
    assert ended.returncode in (0, 2)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(28, "No space left on device", "out/a"), "out/a: No space left on device; make room"),
        (PermissionError(13, "Permission denied", b"out"), "out: Permission denied; expected a path that this user"),
        (OSError(18, "Invalid cross-device link", "a", None, "b"), "a → b: Invalid cross-device link; expected the"),
        (OSError("no number"), "no number; expected the system to allow it"),
        (MemoryError(), "memory ran out"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "memory ran out"),
        (RuntimeError("can't start new thread"), "no thread can be started: raise the limit of processes"),
        (InputError("ours"), "ours"),
        (RuntimeError("a defect"), None),
        (KeyError("a defect"), None),
    ],
    ids=str,
)
def test_whose_fault_it_is(error: Exception, message: str | None) -> None:
    line = line_of(error)
    assert line is None if message is None else line is not None and line.startswith(f"error: {message}")


def test_a_configuration_is_not_blamed_for_the_machine() -> None:
    for error in (MemoryError(), RuntimeError("can't allocate memory: you tried to allocate 99 bytes")):
        with pytest.raises(type(error)), blamed("no llama model has this configuration"):
            raise error


@pytest.mark.parametrize("megabytes", [250, 800])
@pytest.mark.parametrize("verb", ["doctor", "eval"])
def test_a_limit_that_was_set_before(verb: str, megabytes: int, model: Path) -> None:
    """Where the libraries themselves cannot be imported; above that, imports fail somewhere, or hang."""
    size = megabytes * 1_000_000
    command = [sys.executable, "-m", "jointquant", verb, *([str(model)] if verb == "eval" else [])]
    ended = subprocess.run(
        command, capture_output=True, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (size, size))
    )
    assert_one_line(ended, f"this process may have {megabytes} MB of address space")


@pytest.mark.parametrize("word", ["recipes", "--help"])
def test_what_needs_no_libraries_answers_in_little_memory(word: str) -> None:
    size = 250_000_000
    ended = subprocess.run(
        [sys.executable, "-m", "jointquant", word],
        capture_output=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (size, size)),
    )
    assert ended.returncode == 0, ended.stderr.decode()
