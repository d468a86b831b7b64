"""The probe fits every vocabulary."""

from __future__ import annotations

from jointquant.fingerprint.probe import NUM_TOKENS, chat_of, probe_of, without_dates


def test_ids_are_those_of_the_text_as_far_as_the_model_has_them(tokenizer) -> None:
    probe = probe_of(tokenizer, 2048, 64)
    assert probe.tokens == probe.text_tokens[:NUM_TOKENS]
    assert len(probe_of(tokenizer, 2048, 16).tokens) == 16
    few = probe_of(tokenizer, 5, None)
    assert len(few.tokens) == NUM_TOKENS
    assert max(few.tokens) < 5


def test_days_do_not_count(tokenizer) -> None:
    assert without_dates("a 26 Jul 2024 b 2026-11-28 c July 4, 2025") == "a DATE b DATE c DATE"
    assert chat_of(tokenizer) == ""
