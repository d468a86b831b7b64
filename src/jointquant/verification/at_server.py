"""A server that speaks the completions API of OpenAI as a runtime: vLLM's, or any that gives a prompt's probabilities.

Two ways to ask are tried, in order: vLLM's ``prompt_logprobs``, then ``echo`` with ``logprobs``. What the server makes
of text is asked by vLLM's ``/tokenize`` and ``/detokenize``, which others lack: then only numbers are compared.
"""

from __future__ import annotations

import json
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from jointquant.errors import InputError, require

SECONDS = 120
"""That an answer may take."""

LARGEST_ANSWER = 64 << 20
"""Bytes of an answer."""

LARGEST_REASON = 200
"""Bytes of a refusal's text."""


class RefusedError(Exception):
    """The server has no such thing, or does not do it."""


class AtServer:
    """A model at a server.

    Args:
        url: of the server, with or without ``/v1``.
        arithmetic: how it rounds, by a name of the fingerprint's ``noise``.
        model: which of its models; None: the first that it names.

    Raises:
        InputError: no URL, nobody there, or no such model.
    """

    def __init__(self, url: str, arithmetic: str, model: str | None = None) -> None:
        parts = urlsplit(url)
        require(parts.scheme in ("http", "https") and bool(parts.netloc), f"{url} is no URL: expected http://HOST:PORT")
        self.name, self.arithmetic = url, arithmetic
        self.root = url.rstrip("/").removesuffix("/v1")
        names = self._models()
        self.model = names[0] if model is None else model
        require(self.model in names, f"{url} has no model {self.model!r}: expected one of {', '.join(names)[:300]}")

    def log_probabilities(self, tokens: list[int]) -> list[float]:
        """As ``Runtime``. Raises InputError for a server that gives none of a prompt."""
        asked = {"model": self.model, "prompt": tokens, "max_tokens": 1, "temperature": 0}
        answers = []
        for ask, read in ((PROMPT_LOGPROBS, of_prompt), (ECHO, of_echo)):
            try:
                choice = self._ask("/v1/completions", asked | ask)["choices"][0]
                return read(choice, tokens)
            except RefusedError as refused:
                answers.append(str(refused))
            except (KeyError, TypeError, IndexError, ValueError):
                answers.append("an answer without them")
        raise InputError(
            f"{self.name} gives no log-probabilities of a prompt (it says: {'; then '.join(answers)}): expected a "
            "server with `prompt_logprobs` (vLLM), or with `echo` and `logprobs`"
        )

    def tokenize(self, text: str) -> list[int] | None:
        """As ``Runtime``: by vLLM's ``/tokenize``."""
        return self._tokens({"model": self.model, "prompt": text, "add_special_tokens": True})

    def chat(self, question: str) -> str | None:
        """As ``Runtime``: by vLLM's ``/tokenize`` and ``/detokenize``."""
        turns = [{"role": "user", "content": question}]
        tokens = self._tokens({"model": self.model, "messages": turns, "add_generation_prompt": True})
        if tokens is None:
            return None
        try:
            return str(self._ask("/detokenize", {"model": self.model, "tokens": tokens})["prompt"])
        except (RefusedError, KeyError):
            return None

    def _tokens(self, asked: dict[str, Any]) -> list[int] | None:
        try:
            return [int(token) for token in self._ask("/tokenize", asked)["tokens"]]
        except (RefusedError, KeyError, TypeError, ValueError):
            return None

    def _models(self) -> list[str]:
        try:
            listed = self._ask("/v1/models", None)["data"]
            names = [str(each["id"]) for each in listed]
        except (RefusedError, KeyError, TypeError):
            names = []
        require(bool(names), f"{self.name} names no model at /v1/models: expected a server of OpenAI's completions API")
        return names

    def _ask(self, path: str, data: dict[str, Any] | None) -> dict[str, Any]:
        """The JSON object that the server answers. Raises RefusedError, or InputError where nobody is there."""
        body = None if data is None else json.dumps(data).encode()
        request = Request(self.root + path, body, {"Content-Type": "application/json"})
        try:
            with urlopen(request, timeout=SECONDS) as answer:
                found = json.loads(answer.read(LARGEST_ANSWER))
        except HTTPError as error:
            words = " ".join(error.read(LARGEST_REASON).decode(errors="replace").split())
            raise RefusedError(f"status {error.code} {words}".strip()) from None
        except (URLError, OSError) as error:
            reason = " ".join(str(getattr(error, "reason", error)).split())[:200]
            raise InputError(f"no server answers at {self.name}: {reason}") from None
        except ValueError:
            raise RefusedError("no JSON") from None
        if not isinstance(found, dict):
            raise RefusedError("no object")
        return found


PROMPT_LOGPROBS: dict[str, Any] = {"prompt_logprobs": 0}
ECHO: dict[str, Any] = {"echo": True, "logprobs": 1}


def of_prompt(choice: dict[str, Any], tokens: list[int]) -> list[float]:
    """vLLM's ``prompt_logprobs``: for each token but the first, by id what was likely, itself among it."""
    found = choice["prompt_logprobs"]
    if len(found) != len(tokens):
        raise RefusedError("another number of tokens")
    return [float(each[str(token)]["logprob"]) for each, token in zip(found[1:], tokens[1:], strict=True)]


def of_echo(choice: dict[str, Any], tokens: list[int]) -> list[float]:
    """``logprobs.token_logprobs`` of the prompt that is repeated, and of what follows it."""
    found = choice["logprobs"]["token_logprobs"]
    if len(found) < len(tokens):
        raise RefusedError("the prompt is not among them")
    return [float(score) for score in found[1 : len(tokens)]]
