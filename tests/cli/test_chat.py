"""The verb chat."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from commands import assert_refused, run
from jointquant.runtime.loading import load_tokenizer

TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


def test_each_answer_follows_all_turns(save_model, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    folder = save_model("llama")
    tokenizer = load_tokenizer(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    seen: list[str] = []
    from jointquant.runtime import speaker

    written = speaker.as_chat
    monkeypatch.setattr(speaker, "as_chat", lambda *given: seen.append(written(*given)) or seen[-1])
    monkeypatch.setattr("sys.stdin", io.StringIO("a\n\nb\n/new\nc\n" + "d " * 99 + "\ne\n/exit\nf\n"))
    assert run("chat", str(folder), "--system", "s", "--max-new-tokens", "2") == 0
    captured = capsys.readouterr()
    answers = captured.out.splitlines()
    assert [text.count("\n") for text in seen][:3] == [2, 4, 2]
    assert seen[0] == "system: s\nuser: a\n"
    assert seen[1].startswith("system: s\nuser: a\nassistant: ")
    assert seen[1].endswith("user: b\n")
    assert seen[2] == "system: s\nuser: c\n"
    assert "positions" in captured.err, "a question that is too long is told, and forgotten"
    assert "d d" not in seen[-1]
    assert seen[-1].endswith("user: e\n")
    assert answers


def test_a_model_without_a_template_is_refused(save_model, tmp_path: Path, capsys) -> None:
    assert_refused(["chat", str(save_model("llama"))], "has no chat template", capsys, tmp_path)
