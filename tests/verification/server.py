"""A server of OpenAI's completions API on loopback, around a folder that transformers runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

from jointquant.verification.in_transformers import InTransformers


def answer(model: InTransformers, knows: str, path: str, asked: dict[str, Any]) -> dict[str, Any] | None:
    """What the server says; None: it has no such thing. ``knows``: prompt_logprobs, echo, neither, or nothing."""
    tokenizer = model.tokenizer
    if path == "/v1/models":
        return {"data": [{"id": "it"}]}
    if path == "/v1/completions" and knows != "nothing":
        choice: dict[str, Any] = {"text": "x"}
        tokens = asked["prompt"]
        scores = model.log_probabilities(tokens)
        if knows == "prompt_logprobs" and knows in asked:
            pairs = zip(tokens[1:], scores, strict=True)
            choice[knows] = [None, *({str(token): {"logprob": score}} for token, score in pairs)]
        if knows == "echo" and asked.get("echo"):
            choice["logprobs"] = {"token_logprobs": [None, *scores, -1.0]}
        return {"choices": [choice]}
    if knows == "prompt_logprobs" and path == "/tokenize":
        if "messages" in asked:
            text = tokenizer.apply_chat_template(asked["messages"], tokenize=False, add_generation_prompt=True)
            return {"tokens": tokenizer(text, add_special_tokens=False).input_ids}
        return {"tokens": tokenizer(asked["prompt"]).input_ids}
    if knows == "prompt_logprobs" and path == "/detokenize":
        return {"prompt": tokenizer.decode(asked["tokens"])}
    return None


@contextmanager
def served(folder: Path, knows: str) -> Iterator[str]:
    """The URL of a server of a folder, while open."""
    model = InTransformers(folder, "float32", "cpu", "ignore")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            found = answer(model, knows, self.path, json.loads(self.rfile.read(length) or b"{}"))
            self.send_response(404 if found is None else 200)
            self.end_headers()
            self.wfile.write(json.dumps(found).encode())

        do_GET = do_POST  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
