"""fingerprint.json: what it holds, read as something that nobody vouches for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from jointquant.errors import InputError
from jointquant.files.durable import save_json
from jointquant.recipe.faults import describe
from jointquant.trust.strict_json import read_object

VERSION = 1
DIGITS = 5
"""Of a log-probability behind the point."""

Token = Annotated[int, Field(ge=0, le=1 << 24)]
Number = Annotated[float, Field(ge=-1e9, le=1e9, allow_inf_nan=False)]
Scores = Annotated[tuple[Number, ...], Field(min_length=1, max_length=1 << 12)]
Name = Annotated[str, Field(pattern="^[a-z0-9_]{1,40}$")]


class Fingerprint(BaseModel):
    """What a model is to predict.

    Attributes:
        version: of this layout.
        text: the text that was tokenized.
        text_tokens: what the tokenizer makes of it, special tokens included.
        chat: what the chat template makes of a fixed question, dates aside; empty: there is none.
        tokens: the ids that the model is given: [T].
        log_probabilities: natural logarithms of the probability of each token but the first, after those before it:
            [T − 1], computed in float32 with the reference of all products.
        noise: by arithmetic, the root of the mean square by which rounding as that arithmetic does moves them.
        faults: by name of a fault, what the model would predict if it had it: [T − 1] each.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    version: Annotated[int, Field(ge=VERSION, le=VERSION)] = VERSION
    text: Annotated[str, Field(max_length=1 << 14)]
    text_tokens: Annotated[tuple[Token, ...], Field(max_length=1 << 14)]
    chat: Annotated[str, Field(max_length=1 << 16)]
    tokens: Annotated[tuple[Token, ...], Field(min_length=2, max_length=1 << 12)]
    log_probabilities: Scores
    noise: Annotated[dict[Name, Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]], Field(max_length=32)]
    faults: Annotated[dict[Name, Scores], Field(max_length=64)]

    @model_validator(mode="after")
    def _lengths(self) -> Fingerprint:
        wanted = len(self.tokens) - 1
        for name, scores in {"log_probabilities": self.log_probabilities, **self.faults}.items():
            if len(scores) != wanted:
                raise ValueError(f"{name} has {len(scores)} numbers, expected {wanted}")
        return self


def rounded(scores: list[float]) -> tuple[float, ...]:
    """Log-probabilities as files hold them."""
    return tuple(round(score, DIGITS) + 0.0 for score in scores)


def save_fingerprint(path: Path, fingerprint: Fingerprint) -> None:
    """Write it. Raises ResumableError when the disk is full."""
    save_json(path, fingerprint.model_dump(mode="json"))


def load_fingerprint(path: Path) -> Fingerprint:
    """The fingerprint in a file. Raises InputError when it is none."""
    return parsed_fingerprint(read_object(path), str(path))


def parsed_fingerprint(data: dict[str, Any], what: str) -> Fingerprint:
    """The fingerprint that JSON of others is; ``what`` is where it comes from. Raises InputError when it is none."""
    try:
        return Fingerprint.model_validate_json(_as_json(data))
    except ValidationError as error:
        raise InputError(f"{what} holds no fingerprint of this version: {describe(error)}") from None


def _as_json(data: dict[str, Any]) -> bytes:
    """JSON again: a strict model takes arrays for tuples only from there."""
    return json.dumps(data).encode()
