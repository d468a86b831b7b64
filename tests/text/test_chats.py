"""Rows of turns, as a model's chat template writes them."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from transformers import PreTrainedTokenizerBase

from jointquant.errors import InputError
from jointquant.text.sources import load_text

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
SHAREGPT = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]
WRITTEN = "<user>hi\n<assistant>hello\n"


@pytest.fixture
def chatting(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    own = copy.deepcopy(tokenizer)
    own.chat_template = TEMPLATE
    return own


@pytest.mark.parametrize(("column", "turns"), [("messages", MESSAGES), ("conversations", SHAREGPT)])
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_turns_are_written_by_the_template(
    column: str, turns: list[dict[str, str]], suffix: str, chatting: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    path = tmp_path / f"t.{suffix}"
    if suffix == "jsonl":
        path.write_text((json.dumps({column: turns}) + "\n") * 2)
    else:
        pyarrow.parquet.write_table(pyarrow.table({column: [turns, turns]}), path)
    assert load_text(f"{path}:{column}", "calibration", tokenizer=chatting) == f"{WRITTEN}\n\n{WRITTEN}"


def test_a_token_that_the_tokenizer_adds_does_not_stand_twice(
    chatting: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "t.jsonl").write_text(json.dumps({"messages": MESSAGES}))
    first = chatting.convert_ids_to_tokens(chatting("a").input_ids[0])
    chatting.chat_template = "{{ bos_token }}" + TEMPLATE
    for bos, text in ((first, WRITTEN), ("</s>" if first != "</s>" else "<s>", None)):
        chatting.bos_token = bos
        found = load_text(f"{tmp_path / 't.jsonl'}:messages", "calibration", tokenizer=chatting)
        assert found == (text or f"{bos}{WRITTEN}")


@pytest.mark.parametrize(
    ("template", "turns", "message"),
    [
        (None, MESSAGES, "the model's tokenizer has no chat template: expected rows of text"),
        ("{{ raise_exception('roles must alternate') }}", MESSAGES, "chat template refuses a row: roles must"),
        ("{{ 1 / 0 }}", MESSAGES, "chat template refuses a row"),
        ("{% for", MESSAGES, "chat template refuses a row"),
        ("{{ cycler.__init__.__globals__.os.system('touch owned') }}", MESSAGES, "chat template refuses a row"),
        (TEMPLATE, [{"role": "user", "content": [{"type": "image"}]}], "a turn of a chat says no text but list"),
        (TEMPLATE, [{"speaker": "user"}], "no text but list"),
    ],
)
def test_chats_that_are_refused(
    template: str | None, turns: object, message: str, chatting: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    chatting.chat_template = template
    (tmp_path / "t.jsonl").write_text(json.dumps({"messages": turns}))
    with pytest.raises(InputError) as refused:
        load_text(f"{tmp_path / 't.jsonl'}:messages", "calibration", tokenizer=chatting)
    assert message in str(refused.value)
    assert not Path("owned").exists()
