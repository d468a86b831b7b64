"""A dry run: the configuration alone, and what the run would refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jointquant.cli.main import main
from workloads import config


def test_a_dry_run_needs_the_configuration_alone(tmp_path: Path, capsys) -> None:
    config().save_pretrained(tmp_path / "m")
    arguments = ["quantize", str(tmp_path / "m"), "--out", str(tmp_path / "o"), "--dry-run", "--json"]
    with pytest.raises(SystemExit) as end:
        main([*arguments, "--memory-budget", "64GB", "--device-budget", "24GB"])
    assert end.value.code == 0
    plan = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert plan["assumed"] is True
    assert plan["device_peak_bytes"] <= 24e9
    assert sum(plan["seconds"].values()) > 60
    assert not (tmp_path / "o").exists()
    with pytest.raises(SystemExit) as end:
        main([*arguments, "--memory-budget", "64GB", "--device-budget", "2GB"])
    assert end.value.code == 2
    assert "device memory of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--set", "weights.group_size=48"], "does not divide"),
        (["--seqlen", "100000"], "is longer than the model's"),
        (["--calib", "nosuch.txt"], "no such text file"),
        (["--overwrite", "--out", "OUT"], "has no manifest of jointquant"),
        (["--out", "OUT"], "is not empty"),
    ],
)
def test_a_dry_run_refuses_what_the_run_would(flags: list[str], message: str, tmp_path: Path, capsys) -> None:
    config().save_pretrained(tmp_path / "m")
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "mine").write_text("")
    given = [str(tmp_path / "o") if flag == "OUT" else flag for flag in flags]
    target = [] if "--out" in given else ["--out", str(tmp_path / "new")]
    with pytest.raises(SystemExit) as end:
        main(["quantize", str(tmp_path / "m"), *target, "--dry-run", *given])
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_the_verb_plan_takes_a_configuration_file(tmp_path: Path, capsys) -> None:
    """The plan of ``quantize --dry-run``, from a file of any name, with nothing beside it and nothing written."""
    config().save_pretrained(tmp_path / "m")
    (tmp_path / "published.json").write_text((tmp_path / "m" / "config.json").read_text())
    before, plans = sorted(tmp_path.rglob("*")), []
    budgets = ["--memory-budget", "64GB", "--device-budget", "24GB", "--json"]
    dry = ["quantize", str(tmp_path / "m"), "--out", str(tmp_path / "o"), "--dry-run"]
    for words in (["plan", str(tmp_path / "published.json")], ["plan", str(tmp_path / "m")], dry):
        with pytest.raises(SystemExit) as end:
            main([*words, *budgets])
        assert end.value.code == 0
        plans.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
    told = [
        {key: plan[key] for key in ("device_peak_bytes", "disk_bytes", "seconds", "batch_tokens")} for plan in plans
    ]
    assert told[0] == told[1] == told[2]  # what the process has in memory already is more each time
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "published.json"),
        ('{"model_type": "nosuch"}', "published.json is not a configuration"),
        ('{"model_type": "llama", "hidden_size": 0}', "hidden_size is '0', expected a whole number"),
        ('{"model_type": "bert"}', "unknown architecture 'bert'"),
    ],
)
def test_the_verb_plan_refuses_what_is_no_configuration(text: str, message: str, tmp_path: Path, capsys) -> None:
    (tmp_path / "published.json").write_text(text)
    with pytest.raises(SystemExit) as end:
        main(["plan", str(tmp_path / "published.json")])
    assert end.value.code == 2
    assert message in capsys.readouterr().err
