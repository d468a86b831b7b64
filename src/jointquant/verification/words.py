"""What a user may name as a runtime; imports nothing, so that the command line answers at once."""

from __future__ import annotations

RUNTIMES = ("transformers", "llama.cpp", "vllm")
"""By name; anything else is a server's URL."""


def is_url(words: str) -> bool:
    """Whether words name a server."""
    return words.startswith(("http://", "https://"))
