"""The command line against a hub that answers: one process for all commands, one test for what each must do."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from hub.loopback import LoopbackHub
from hub.machine import Machine, Result
from jointquant.demo import __file__ as demo

SMALL_RUN = [
    "--recipe",
    "rtn",
    "--calib",
    "wikitext2",
    "--num-samples",
    "4",
    "--seqlen",
    "32",
    "--device",
    "cpu",
    "--json",
]
NEEDED = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}


@dataclass(frozen=True)
class Session:
    """What the commands did, by name, and where."""

    results: dict[str, Result]
    hub: LoopbackHub
    machine: Machine
    first: str
    last: str

    @property
    def artifact(self) -> Path:
        return self.machine.folder / "artifact"


@pytest.fixture(scope="module")
def session(hub: LoopbackHub, machine: Machine) -> Session:
    """All commands, in order, on one cache."""
    first, last = hub.repos["models/tiny/llama"].commits
    artifact, files = machine.folder / "artifact", machine.folder / "files"
    text = str(Path(demo).parent / "calibration.txt")
    texts = ["--text", "wikitext2", "--text", "ptb", "--text", "c4", "--text", "hub:tiny/news:news:test:body"]
    evaluation = ["--seqlen", "32", "--device", "cpu"]
    commands = {
        "quantize": ["quantize", "tiny/llama", "--revision", first, "--out", str(artifact), *SMALL_RUN],
        "download": ["download", "tiny/llama", "--json"],
        "download pinned": ["download", f"tiny/llama@{first}"],
        "generate": ["generate", f"tiny/llama@{first}", "--prompt", "The", "--max-new-tokens", "2", "--device", "cpu"],
        "eval": ["eval", "tiny/llama", *texts, *evaluation, "--json"],
        "data set": ["download", "tiny/news", "--dataset", "--out", str(files)],
        "once": ["download", "tiny/once"],
        "cut": ["download", "tiny/cut"],
        "cut again": ["download", "tiny/cut", "--json"],
        "none": ["eval", "tiny/none", *evaluation],
        "gated": ["eval", "tiny/gated", *evaluation],
        "broken": ["download", "tiny/broken"],
        "hanging": ["download", "tiny/hanging"],
        "pickle": ["download", "tiny/pickle"],
        "revision": ["download", "tiny/llama@v9"],
        "two revisions": ["download", "tiny/llama@v9", "--revision", "v8"],
        "path": ["eval", "./tiny/llama", *evaluation],
        "bare name": ["eval", "llama", *evaluation],
        "local revision": ["eval", str(artifact), "--revision", "v1", *evaluation],
        "occupied": ["quantize", "tiny/never-asked-for", "--out", str(artifact)],
        "unknown family": ["quantize", "tiny/unknown", "--out", str(machine.folder / "no"), "--calib", text],
        "no data set": ["eval", "tiny/llama", "--text", "hub:tiny/none", *evaluation],
        "no config": ["eval", "tiny/llama", "--text", "hub:tiny/news:old", *evaluation],
        "no split": ["eval", "tiny/llama", "--text", "hub:tiny/news:news:dev", *evaluation],
        "no column": ["eval", "tiny/llama", "--text", "hub:tiny/news:news:test", *evaluation],
        "modelscope": ["download", "tiny/llama", "--hub", "modelscope", "--json"],
    }
    results = machine.run(list(commands.values()))
    return Session(dict(zip(commands, results, strict=True)), hub, machine, first, last)


def test_an_artifact_names_the_id_and_the_commit_it_was_made_of(session: Session) -> None:
    assert session.results["quantize"].status == 0, session.results["quantize"].err
    config = (session.artifact / "config.json").read_text(encoding="utf-8")
    assert '"base_model": "tiny/llama"' in config
    assert f'"base_revision": "{session.first}"' in config
    assert str(session.machine.folder) not in config
    assert json.loads((session.artifact / "generation_config.json").read_text())["max_length"] == 7


def test_download_brings_what_runs_a_model_and_nothing_else(session: Session) -> None:
    found = session.results["download"].json
    assert found["revision"] == session.last
    names = {path.name for path in Path(str(found["path"])).iterdir()}
    shards = {name for name in names if name.startswith("model-")}
    assert len(shards) == 5
    assert names == NEEDED | shards | {"model.safetensors.index.json"}


def test_a_commit_that_is_in_the_cache_needs_no_hub(session: Session) -> None:
    folder = Path(session.results["download pinned"].out.strip())
    assert folder.name == session.first
    assert session.results["generate"].out.startswith("The")
    listings = [
        path for _, path, _ in session.hub.requests if path == f"/api/models/tiny/llama/revision/{session.first}"
    ]
    assert len(listings) == 1, "quantize listed it; download and generate asked for nothing"


def test_evaluation_reads_texts_of_the_hub(session: Session) -> None:
    perplexity = session.results["eval"].json["perplexity"]
    assert isinstance(perplexity, dict)
    assert list(perplexity) == ["wikitext2", "ptb", "c4", "hub:tiny/news:news:test:body"]
    assert perplexity["wikitext2"] == pytest.approx(perplexity["hub:tiny/news:news:test:body"]), "the same rows"
    assert session.hub.fetched().count("c4-validation.00000-of-00008.json.gz") == 1
    assert "c4-train.00000-of-01024.json.gz" not in session.hub.fetched()


def test_a_data_set_is_downloaded_without_its_scripts(session: Session) -> None:
    folder = session.machine.folder / "files"
    assert session.results["data set"].out.strip() == str(folder)
    names = {
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and ".cache" not in path.parts
    }
    assert names == {"README.md", "news/train-0.parquet", "news/test-0.parquet", "news.txt"}


def test_a_dropped_connection_is_taken_up_again(session: Session) -> None:
    assert session.results["once"].status == 0, session.results["once"].err
    assert "download tiny/once (MB): 25/25" in session.results["once"].err
    ranges = asked_ranges(session.hub, "once")
    assert ranges[0] is None
    assert ranges[1:] == ["bytes=10485760-"]


def test_the_run_after_a_failed_download_keeps_its_finished_files(session: Session) -> None:
    line = session.results["cut"].error
    assert "the connection to the hub at http://127.0.0.1:" in line
    assert "run the command again (finished files are kept)" in line
    folder = Path(str(session.results["cut again"].json["path"]))
    assert (folder / "rotations.safetensors").stat().st_size == 24_000_000
    shards = [
        path for _, path, _ in session.hub.requests if path.startswith("/tiny/cut/resolve/") and "model-0" in path
    ]
    assert len(shards) == 2 * 5, "a HEAD and a GET each, in the first run only"


def asked_ranges(hub: LoopbackHub, name: str) -> list[str | None]:
    """Which parts of the large file were asked for."""
    wanted = f"/tiny/{name}/resolve/"
    return [
        asked
        for method, path, asked in hub.requests
        if method == "GET" and path.startswith(wanted) and path.endswith("rotations.safetensors")
    ]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("none", "no such model tiny/none: expected a local folder or a repository of the hub at http://127.0.0.1:"),
        ("gated", "accept its licence on its page of the hub, then log in with `hf auth login` or set HF_TOKEN"),
        ("broken", "answered with status 500"),
        ("hanging", "set HF_HUB_OFFLINE=1 to use what is cached"),
        ("pickle", "has only pickle weights (pytorch_model.bin): expected model.safetensors"),
        ("revision", "model tiny/llama at revision v9: no such revision: expected a branch, a tag or a commit"),
        ("two revisions", "two revisions, v9 and v8: expected one"),
        ("path", "no such model: ./tiny/llama (expected a folder with config.json and safetensors, or a hub id"),
        ("bare name", "no such model: llama (expected"),
        ("local revision", "is a local folder: expected no revision, got v1"),
        ("occupied", "is not empty: expected a new one, or --overwrite"),
        ("unknown family", "gpt2"),
        ("no data set", "no such data set tiny/none: expected a repository of the hub"),
        ("no config", "BuilderConfig 'old' not found. Available: ['news']"),
        ("no split", 'Unknown split "dev"'),
        ("no column", "has no column 'text': expected one of body"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(session: Session, name: str, words: str) -> None:
    assert words in session.results[name].error
    assert session.results[name].seconds < 20


def test_nothing_is_fetched_in_vain(session: Session) -> None:
    paths = [path for _, path, _ in session.hub.requests]
    assert not [path for path in paths if "never-asked-for" in path], "the output folder is checked first"
    unknown = [path for path in paths if path.startswith("/tiny/unknown/resolve/")]
    assert unknown
    assert not [path for path in unknown if path.endswith(".safetensors")], "the family is checked before the weights"
    assert not [path for path in paths if path.endswith((".bin", ".py", "consolidated.safetensors"))] or all(
        path.endswith("news.py") for path in paths if path.endswith(".py")
    )


def test_modelscope_is_an_optional_hub(session: Session) -> None:
    result = session.results["modelscope"]
    try:
        import modelscope  # noqa: F401
    except ImportError:
        assert "pip install jointquant[modelscope]" in result.error
        return
    assert result.json["revision"] == "master"
    names = {path.name for path in Path(str(result.json["path"])).iterdir()}
    assert names >= NEEDED
    assert not [name for name in names if name.endswith((".bin", ".py"))]


def test_offline_uses_the_cache(session: Session) -> None:
    evaluation = ["--seqlen", "32", "--device", "cpu", "--json"]
    asked = len(session.hub.requests)
    cached, missing_model, missing_text = session.machine.run(
        [
            ["eval", "tiny/llama", "--text", "wikitext2", "--text", "hub:tiny/news:news:test:body", *evaluation],
            ["eval", "tiny/gated", *evaluation],
            ["eval", "tiny/llama", "--text", "hub:tiny/none", *evaluation],
        ],
        HF_HUB_OFFLINE="1",
    )
    online = session.results["eval"].json["perplexity"]
    offline = cached.json["perplexity"]
    assert isinstance(online, dict)
    assert isinstance(offline, dict)
    assert offline == {source: online[source] for source in offline}
    assert "model tiny/gated is not in the cache" in missing_model.error
    assert "data set tiny/none is not in the cache" in missing_text.error
    assert len(session.hub.requests) == asked


def test_a_hub_that_is_down_is_named_within_seconds(tmp_path: Path) -> None:
    user = Machine(tmp_path, "http://127.0.0.1:9")  # the discard port, where nothing listens
    model, data_set, pinned = user.run(
        [
            ["eval", "tiny/llama"],
            ["download", "tiny/news", "--dataset"],
            ["download", f"tiny/llama@{'0' * 40}"],
        ]
    )
    for result in (model, data_set, pinned):
        assert "http://127.0.0.1:9 failed" in result.error
        assert "pass a local folder or file" in result.error
        assert result.seconds < 10
