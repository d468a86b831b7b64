"""A list of models and texts from a hub on this machine: sizes first, then the files, and only once."""

from __future__ import annotations

from pathlib import Path

import pytest

from hub.loopback import LoopbackHub
from hub.machine import Machine
from jointquant.errors import InputError
from jointquant.text.download_lists import LISTS, wanted_of

LIST = "models: [tiny/llama, tiny/gated]\ntexts: [wikitext2]\n"


def test_sizes_then_files_then_nothing_again(hub: LoopbackHub, tmp_path: Path) -> None:
    """Told sizes are those of the hub's files; what cannot be had is said at the end, when the rest is there."""
    listed, good = tmp_path / "list.yaml", tmp_path / "good.yaml"
    listed.write_text(LIST)
    good.write_text(LIST.replace(", tiny/gated", ""))
    machine, before = Machine(tmp_path / "user", hub.endpoint), len(hub.requests)
    sizes, fetched, again, damaged = machine.run(
        [
            ["download", "--all", str(good), "--dry-run", "--json"],
            ["download", "--all", str(listed)],
            ["download", "--all", str(good), "--json"],
            ["download", "--all", str(good), "--out", "x"],
        ]
    )
    files = hub.repos["models/tiny/llama"].commits[hub.repos["models/tiny/llama"].branches["main"]]
    texts = hub.repos["datasets/Salesforce/wikitext"]
    rows = {row["name"]: row for row in sizes.json["rows"]}  # type: ignore[attr-defined]
    assert rows["wikitext2"]["size_bytes"] == sum(map(len, texts.commits[texts.branches["main"]].values()))
    assert rows["wikitext2"]["missing_bytes"] == rows["wikitext2"]["size_bytes"]
    shards = {name: len(data) for name, data in files.items() if name.startswith("model-")}
    small = ("config.json", "generation_config.json", "model.safetensors.index.json", "tokenizer.json")
    expected = sum(shards.values()) + sum(len(files[name]) for name in (*small, "tokenizer_config.json"))
    assert rows["tiny/llama"]["size_bytes"] == expected
    assert rows["tiny/llama"]["missing_bytes"] == sum(shards.values())
    assert "1 of 3 could not be fetched: model tiny/gated" in fetched.error
    assert again.json["missing_bytes"] == 0
    assert "expected no --hub, --dataset, --revision, --out" in damaged.error
    asked = [path for method, path, _ in hub.requests[before:] if method == "GET" and "/resolve/" in path]
    assert sorted(name for path in asked if (name := path.rsplit("/", 1)[-1]) in shards) == sorted(shards)


def test_a_file_that_was_cut_is_told(hub: LoopbackHub, tmp_path: Path) -> None:
    listed = tmp_path / "list.yaml"
    listed.write_text("texts: [wikitext2]\n")
    machine = Machine(tmp_path / "user", hub.endpoint)
    machine.run([["download", "--all", str(listed)]])
    (found,) = {path.resolve() for path in (tmp_path / "user").rglob("test-00000-of-00001.parquet")}
    found.write_bytes(found.read_bytes()[:-1])
    (result,) = machine.run([["download", "--all", str(listed)]])
    assert "bytes in the cache: expected" in result.error


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "is no mapping"),
        ("{}", "names neither models nor texts"),
        ("datasets: [a/b]", "unknown key 'datasets'"),
        ("models: a/b", "is no list of names"),
        ("models: [a]", "is no hub id"),
        ("texts: [wikitext3]", "unknown text of list .* 'wikitext3'"),
    ],
)
def test_other_lists_are_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        wanted_of(str(tmp_path / "list.yaml"))


def test_the_lists_of_the_package_are_whole() -> None:
    names = [path.stem for path in LISTS.glob("*.yaml")]
    assert "documents" in names
    for name in names:
        wanted = [each.name for each in wanted_of(name)]
        assert len(wanted) == len(set(wanted)) > 0
    with pytest.raises(InputError, match="unknown list 'document'"):
        wanted_of("document")
