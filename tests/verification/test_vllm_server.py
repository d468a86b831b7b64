"""A server that is started for a question, and stopped behind it; its program stands in for vLLM."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from jointquant import InputError
from jointquant.verification.vllm_server import vllm_at

PROGRAM = """#!{python}
import json, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

if "broken" in sys.argv[2]:
    sys.exit("ValueError: no such kernel")

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({{"data": [{{"id": " ".join(sys.argv[1:3] + sys.argv[7:9])}}]}}).encode())

HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""


def test_it_is_started_and_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="vLLM is not here"), vllm_at(Path("a"), "float32", "auto"):
        pass
    (tmp_path / "vllm").write_text(PROGRAM.format(python=sys.executable))
    (tmp_path / "vllm").chmod(0o755)
    monkeypatch.chdir(tmp_path)
    for name in ("folder", "broken"):
        Path(name).mkdir()
        Path(name, "config.json").write_text("{}")
    with vllm_at(Path("folder"), "float32", "float32") as server:
        assert (server.name, server.model) == ("vLLM", "serve folder --dtype float32")
        root = server.root
    with pytest.raises(InputError, match="no server answers"):
        type(server)(root, "float32")
    broken = pytest.raises(InputError, match="vLLM does not serve broken: ValueError: no such kernel")
    with broken, vllm_at(Path("broken"), "float32", "auto"):
        pass
