"""The text that every fingerprint is of, and the token ids that a model is given for it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from jointquant.errors import InputError
from jointquant.text.chats import asked

TEXT = (
    "The old harbour was built in 1874, and 312 boats found room in it. Every morning at half past five the first of "
    "them came back: nets on deck, lamps still lit.\n\n  def price(fish):  # naïve\n    return 3.50 * fish\n\n"
    "Nobody asked who paid for the stones; 東京 had not heard of the town, “and better so”, said the harbour master."
)
"""Plain English, numbers, code, spaces, line ends and other scripts: what tokenizers treat differently."""

QUESTION = "Which boat came back first?"
"""What a user asks where the chat template is looked at."""

NUM_TOKENS = 48
"""Of the text, as many are predicted, less one; fewer where the model has fewer positions."""

STRIDE = 7919
"""Steps by which made-up ids walk through the vocabulary where the text has too few tokens."""

DATE = re.compile(r"\b\d{1,2} [A-Z][a-z]{2,8} \d{4}\b|\b\d{4}-\d\d-\d\d\b|\b[A-Z][a-z]{2,8} \d{1,2}, \d{4}\b")
"""Some templates tell the model which day it is."""


@dataclass(frozen=True)
class Probe:
    """What is asked of a model and its tokenizer.

    Attributes:
        text_tokens: what the tokenizer makes of ``TEXT``, special tokens included.
        chat: what the chat template makes of ``QUESTION``, dates aside; empty where there is none, or it refuses.
        tokens: what the model is given; none of them lies beyond its vocabulary.
    """

    text_tokens: tuple[int, ...]
    chat: str
    tokens: tuple[int, ...]


def probe_of(tokenizer: PreTrainedTokenizerBase, vocabulary: int, positions: int | None) -> Probe:
    """The probe for a model of so many tokens and positions (None: any number of them)."""
    text_tokens = tuple(int(token) for token in tokenizer(TEXT).input_ids)
    count = min(NUM_TOKENS, positions or NUM_TOKENS)
    known = [token for token in text_tokens if token < vocabulary][:count]
    made_up = [STRIDE * (index + 1) % vocabulary for index in range(count - len(known))]
    return Probe(text_tokens, chat_of(tokenizer), (*known, *made_up))


def chat_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """``QUESTION`` as a chat template writes it, dates aside; empty where there is none, or it refuses."""
    if not tokenizer.chat_template:
        return ""
    try:
        return without_dates(asked(tokenizer, QUESTION))
    except InputError:
        return ""  # a template that refuses a plain question refuses it everywhere


def without_dates(text: str) -> str:
    """A text with a word in the place of each date."""
    return DATE.sub("DATE", text)
