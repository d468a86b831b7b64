"""Plans for cards that are not here: their rates are named, and what is predicted is called so."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import LlamaConfig

import jointquant
from commands import run
from jointquant.errors import InputError
from jointquant.planning.cards import ASSUMED, CARDS
from jointquant.planning.speed import Speed


@pytest.fixture
def config(tmp_path: Path) -> Path:
    sizes = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4, "vocab_size": 512}
    LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, dtype="bfloat16").save_pretrained(tmp_path)
    return tmp_path


def test_a_plan_for_a_card_is_labelled(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dry = jointquant.dry_run(config, "dartquant", gpu="h100")
    assert dry.assumed
    assert dry.card is CARDS["h100"]
    assert dry.to_dict()["predicted_for"] == "one NVIDIA H100 of 80 GB"
    assert run("plan", str(config), "--recipe", "dartquant", "--gpu", "h100", "--json") == 0
    printed = capsys.readouterr()
    assert "predicted for one NVIDIA H100 of 80 GB" in " ".join(printed.err.split())
    assert '"predicted_for": "one NVIDIA H100 of 80 GB"' in printed.out
    slower = jointquant.dry_run(config, "dartquant", device_budget="24GB")
    assert slower.card is ASSUMED
    assert sum(slower.seconds.values()) > sum(dry.seconds.values())


def test_other_cards_are_refused(config: Path) -> None:
    with pytest.raises(InputError, match=r"unknown gpu 'tpu': expected .*h100"):
        jointquant.dry_run(config, gpu="tpu")


def test_seconds_follow_from_the_rates(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half the rates, nearly twice the time: reading files takes as long."""
    fast = CARDS["h100"]
    speed = Speed(fast.speed.products / 2, fast.speed.float32 / 2, fast.speed.bandwidth / 2, fast.speed.column * 2)
    before = jointquant.dry_run(config, "dartquant", gpu="h100").seconds
    monkeypatch.setitem(CARDS, "h100", type(fast)(fast.title, fast.memory, speed, fast.rates))
    after = jointquant.dry_run(config, "dartquant", gpu="h100").seconds
    assert after["learn"] == pytest.approx(2 * before["learn"])
    assert before["quantize"] < after["quantize"] < 2 * before["quantize"] + 1e-9
