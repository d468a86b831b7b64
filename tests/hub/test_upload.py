"""``push`` to a hub that takes commits, and what comes back from it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from huggingface_hub import constants

import jointquant
from conftest import DEMO, make_model, small
from hub.loopback import LoopbackHub, repo
from hub.machine import Machine, Result
from hub.uploads import TOKEN
from jointquant.hub import push
from jointquant.runtime.loading import load_tokenizer


@dataclass(frozen=True)
class Session:
    """What the commands did, by name, and where."""

    results: dict[str, Result]
    hub: LoopbackHub
    artifact: Path
    fetched: Path
    snapshot: Path


def left_by_transformers(hub: LoopbackHub, machine: Machine, artifact: Path) -> Path:
    """A snapshot in the cache with what transformers fetches of a model: its configuration and its shards."""
    files = {path.name: path.read_bytes() for path in artifact.iterdir()}
    repository = hub.repos["models/me/part"] = repo(files)
    cache = machine.folder / "hf" / "hub" / "models--me--part"
    snapshot = cache / "snapshots" / next(iter(repository.commits))
    snapshot.mkdir(parents=True)
    for name in files:
        if name.startswith(("config", "model")):
            (snapshot / name).write_bytes(files[name])
    return snapshot


@pytest.fixture(scope="module")
def session(hub: LoopbackHub, machine: Machine) -> Session:
    """All commands, in order."""
    artifact, fetched = machine.folder / "to push", machine.folder / "fetched"
    recipe = jointquant.load_recipe("rtn", small("rotations.r1.kind=hadamard"))
    jointquant.quantize(make_model("llama"), artifact, recipe, tokenizer=load_tokenizer(DEMO / "model"))
    text = machine.folder / "heldout.txt"
    text.write_text((DEMO / "heldout.txt").read_text(encoding="utf-8")[:4000], encoding="utf-8")
    snapshot = left_by_transformers(hub, machine, artifact)
    evaluation = ["--text", str(text), "--seqlen", "32", "--device", "cpu"]
    commands = {
        "card": ["eval", str(artifact), *evaluation, "--card"],
        "push": ["push", str(artifact), "me/int4", "--private", "--message", "first", "--json"],
        "again": ["push", str(artifact), "me/int4", "--json"],
        "download": ["download", "me/int4", "--out", str(fetched), "--json"],
        "eval": ["eval", "me/int4", *evaluation, "--json"],
        "part": ["generate", str(snapshot), "--prompt", "The", "--max-new-tokens", "1", "--device", "cpu"],
        "no artifact": ["push", str(DEMO / "model"), "me/int4"],
        "no id": ["push", str(artifact), "int4"],
        "no name": ["push", str(artifact), "me/a--b"],
        "a revision": ["push", str(artifact), "me/int4@v1"],
        "denied": ["push", str(artifact), "others/int4"],
        "card of a model": ["eval", str(DEMO / "model"), *evaluation, "--card"],
    }
    results = machine.run(list(commands.values()), HF_TOKEN=TOKEN, HF_HUB_DISABLE_XET="1")
    return Session(dict(zip(commands, results, strict=True)), hub, artifact, fetched, snapshot)


def test_every_file_arrives_in_one_commit(session: Session) -> None:
    pushed = session.results["push"].json
    repo = session.hub.repos["models/me/int4"]
    assert repo.branches["main"] == pushed["revision"]
    files = {name: data for name, data in repo.commits[str(pushed["revision"])].items() if name != ".gitattributes"}
    assert files == {path.name: path.read_bytes() for path in session.artifact.iterdir()}
    assert session.hub.uploads.created["me/int4"]["visibility"] == "private"
    assert session.hub.uploads.messages[0] == "first"
    assert session.results["again"].json["url"] == pushed["url"] == f"{session.hub.endpoint}/me/int4"


def test_the_card_goes_with_it(session: Session) -> None:
    card = (
        session.hub.repos["models/me/int4"].commits[str(session.results["push"].json["revision"])]["README.md"].decode()
    )
    assert "pip install jointquant" in card
    assert "| heldout.txt | 32 tokens |" in card
    assert "type: perplexity" in card
    assert str(session.artifact.parent) not in card


def test_what_belongs_to_a_part_is_fetched_beside_it(session: Session) -> None:
    """Its digests, what they vouch for, and nothing else."""
    assert session.results["part"].status == 0, session.results["part"].err
    beside = {path.name for path in session.snapshot.iterdir() if not path.name.startswith(("config", "model"))}
    files = {"digests.json", "fingerprint.json", "rotations.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert beside == files


def test_what_was_pushed_runs(session: Session) -> None:
    assert session.results["download"].status == 0, session.results["download"].err
    perplexity = session.results["eval"].json["perplexity"]
    assert isinstance(perplexity, dict)
    card = (session.artifact / "README.md").read_text(encoding="utf-8")
    assert f"| {next(iter(perplexity.values())):.4f} |" in card


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no artifact", "is no artifact and no export of one: expected a folder that jointquant wrote"),
        ("no id", "'int4' is no hub id: expected owner/name"),
        ("no name", "me/a--b can be no name of a repository"),
        ("a revision", "names a revision: expected owner/name"),
        ("denied", "does not let you write to others/int4: log in with `hf auth login`, or set HF_TOKEN"),
        ("card of a model", "is no artifact and no export of one"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(session: Session, name: str, words: str) -> None:
    assert words in session.results[name].error


def test_offline_nothing_is_tried(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(jointquant.InputError, match="cannot be written while HF_HUB_OFFLINE is set"):
        push(session.artifact, "me/int4")


# transformers' own push_to_hub of the model and of its tokenizer, and what comes back through an id.
BY_TRANSFORMERS = """
import sys, torch, jointquant
from transformers import AutoModelForCausalLM, AutoTokenizer

artifact = sys.stdin.read()
model, tokenizer = AutoModelForCausalLM.from_pretrained(artifact), AutoTokenizer.from_pretrained(artifact)
model.push_to_hub("me/by-transformers", commit_message="by transformers", private=True)
tokenizer.push_to_hub("me/by-transformers")
again = AutoModelForCausalLM.from_pretrained("me/by-transformers")
words = AutoTokenizer.from_pretrained("me/by-transformers")("The library", return_tensors="pt")
with torch.no_grad():
    print(type(again).__name__, torch.equal(model(**words).logits, again(**words).logits))
"""


def test_a_loaded_artifact_is_pushed_by_transformers(session: Session, machine: Machine) -> None:
    environment = {"HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
    printed = machine.python(BY_TRANSFORMERS, str(session.artifact), **environment)
    assert printed.splitlines()[-1] == "JointQuantLlamaForCausalLM True"
    assert "by transformers" in session.hub.uploads.messages
    assert session.hub.uploads.created["me/by-transformers"]["visibility"] == "private"
    repository = session.hub.repos["models/me/by-transformers"]
    files = repository.commits[repository.branches["main"]]
    assert {"digests.json", "rotations.safetensors", "tokenizer.json"} <= set(files)
    pushed, written = json.loads(files["digests.json"]), json.loads((session.artifact / "digests.json").read_text())
    assert pushed["tensors"] == written["tensors"]
