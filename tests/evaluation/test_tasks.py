"""Tasks through lm-eval: a multiple-choice task of the test's own, on the embedded model and on an artifact of it."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path

import pytest

from conftest import DEMO
from jointquant.cli.main import main
from jointquant.errors import InputError
from jointquant.evaluation.tasks import TaskSet

QUESTIONS = 60
TASK = """
task: which_continues
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{start}}}}"
doc_to_choice: choices
doc_to_target: answer
target_delimiter: " "
metric_list:
  - metric: acc
  - metric: acc_norm
"""


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return int(ended.value.code or 0)


def last_json(capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, dict[str, float]]]:
    return dict(json.loads(capsys.readouterr().out.strip().splitlines()[-1]))


@pytest.fixture
def lm_eval() -> None:
    pytest.importorskip("lm_eval", reason="tasks need lm-eval: pip install 'jointquant[eval]'")


@pytest.fixture
def task_file(tmp_path: Path) -> Path:
    """Which of two endings is the paragraph's own? The other one has the same words, backwards."""
    paragraphs = [" ".join(p.split()) for p in (DEMO / "heldout.txt").read_text().split("\n\n")]
    words = [p.split() for p in paragraphs if 16 <= len(p.split()) <= 40][:QUESTIONS]
    assert len(words) == QUESTIONS
    rows = []
    for number, own in enumerate(words):
        endings = [" ".join(own[10:16]), " ".join(own[15:9:-1])]
        answer = number % 2
        rows.append({"start": " ".join(own[:10]), "choices": endings[:: 1 - 2 * answer], "answer": answer})
    folder = tmp_path / "tasks"
    folder.mkdir()
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = folder / "continues.yaml"
    path.write_text(TASK.format(data=data))
    return path


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.usefixtures("lm_eval", "no_network")
def test_a_local_task_on_the_model_and_on_an_artifact(task_file: Path, tmp_path: Path, capsys) -> None:
    artifact, text = tmp_path / "artifact", str(DEMO / "calibration.txt")
    quick = ["--calib", text, "--num-samples", "4", "--seqlen", "128", "--recipe", "quarot"]
    assert run("quantize", str(DEMO / "model"), "--out", str(artifact), *quick) == 0
    scores = {}
    for name, model in (("original", DEMO / "model"), ("quantized", artifact)):
        assert run("eval", str(model), "--tasks", str(task_file), "--json") == 0
        result = last_json(capsys)
        assert result["perplexity"] == {}
        scores[name] = result["tasks"]["which_continues"]
    assert set(scores["original"]) == {"acc", "acc_stderr", "acc_norm", "acc_norm_stderr"}
    assert scores["original"]["acc"] > 0.5 + 4 * scores["original"]["acc_stderr"]
    assert abs(scores["quantized"]["acc"] - scores["original"]["acc"]) <= 0.15


@pytest.mark.usefixtures("lm_eval", "no_network")
def test_tasks_beside_text(task_file: Path, capsys) -> None:
    text = str(DEMO / "heldout.txt")
    options = ["--text", text, "--max-tokens", "512", "--seqlen", "256", "--limit", "5", "--num-fewshot", "1"]
    assert run("eval", str(DEMO / "model"), "--tasks", str(task_file), *options) == 0
    shown = capsys.readouterr()
    assert "which_continues" in shown.out
    assert "perplexity" in shown.out
    assert "10/10" in shown.err  # five questions of two choices


@pytest.mark.usefixtures("lm_eval")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such task file"),
        ("- a list", "expected a mapping"),
        ("a: [", "not readable as YAML"),
        ("output_type: multiple_choice", "expected its name under 'task'"),
        ("task: broken\ndataset_path: json\ndataset_kwargs: {data_files: nowhere.jsonl}", "cannot be loaded"),
    ],
)
def test_files_that_are_no_tasks(content: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=message) as error:
        TaskSet((str(path),))
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("lm_eval")
@pytest.mark.parametrize(("names", "message"), [("no_such_task", "unknown task 'no_such_task'"), ("a,,b", "no task")])
def test_unknown_tasks_are_refused_before_the_model_is_read(names: str, message: str, tmp_path: Path, capsys) -> None:
    assert run("eval", str(tmp_path), "--tasks", names) == 2  # a folder without a model
    assert message in capsys.readouterr().err


def test_without_lm_eval(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr("jointquant.evaluation.tasks.find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert run("eval", str(DEMO / "model"), "--tasks", "hellaswag") == 2
    assert capsys.readouterr().err == "error: tasks need lm-eval: pip install 'jointquant[eval]'\n"


def test_options_of_tasks_need_tasks(capsys) -> None:
    assert run("eval", str(DEMO / "model"), "--limit", "3") == 2
    assert "limit are for tasks" in capsys.readouterr().err


@pytest.mark.usefixtures("lm_eval", "no_network")
def test_tasks_need_the_whole_model(task_file: Path, save_model, capsys) -> None:
    assert run("eval", str(save_model("llama")), "--tasks", str(task_file), "--memory-budget", "1MB") == 2
    assert "larger --memory-budget" in capsys.readouterr().err
