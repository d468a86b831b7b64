"""A small hub on 127.0.0.1, with as much of the API as huggingface_hub and datasets call, and faults on demand."""

from __future__ import annotations

import gzip
import json
import threading
from dataclasses import dataclass, field
from hashlib import sha1, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from hub.uploads import Uploads


@dataclass
class Repo:
    """Commits by hash, branches by name, and who may read.

    Attributes:
        commits: files of each commit.
        branches: commit of each branch or tag.
        gated: every request is refused with the hub's code for a gated repository.
        hangs: no request is ever answered.
        status: every request is answered with this status.
        cuts: by file: how many more times the connection is dropped, first midway, then before the first byte.
    """

    commits: dict[str, dict[str, bytes]]
    branches: dict[str, str]
    gated: bool = False
    hangs: bool = False
    status: int | None = None
    cuts: dict[str, int] = field(default_factory=dict)

    def resolve(self, revision: str) -> str | None:
        """The commit of a revision."""
        return revision if revision in self.commits else self.branches.get(revision)


def repo(*snapshots: dict[str, bytes], **faults: Any) -> Repo:
    """A repository with one commit a snapshot; main is the last."""
    commits = {_etag(repr((number, sorted(files))).encode()): files for number, files in enumerate(snapshots)}
    return Repo(commits, {"main": list(commits)[-1]}, **faults)


class LoopbackHub:
    """Serves ``repos`` (keys ``models/owner/name`` and ``datasets/owner/name``) while the block runs."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.requests: list[tuple[str, str, str | None]] = []  # method, path, Range
        self.uploads = Uploads(self)
        self._released = threading.Event()

    def __enter__(self) -> LoopbackHub:
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._released.set()
        self._server.shutdown()
        self._server.server_close()

    @property
    def endpoint(self) -> str:
        """What HF_ENDPOINT is set to."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def wait(self) -> None:
        """Hang until the hub is shut down."""
        self._released.wait()

    def fetched(self) -> list[str]:
        """Files that were asked for by GET, last part of the path."""
        return [path.rsplit("/", 1)[-1] for method, path, _ in self.requests if method == "GET" and "/resolve/" in path]


class _Handler(BaseHTTPRequestHandler):
    server_hub: LoopbackHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self._form = self.rfile.read(length).decode()
        path = unquote(urlsplit(self.path).path)
        if Uploads.handles(path):
            self.server_hub.requests.append((self.command, path, None))
            status, answer = self.server_hub.uploads.post(path, self._form, self.headers)
            self._json(answer, True, status)
        else:
            self._answer(body=True)

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server_hub.uploads.put(data)
        self._send(200, b"", True)

    def _answer(self, body: bool) -> None:
        hub = self.server_hub
        path = unquote(urlsplit(self.path).path)
        hub.requests.append((self.command, path, self.headers.get("Range")))
        if path.startswith("/api/v1/"):
            self._modelscope(path, body)
            return
        kind, name, action, rest = _route(path)
        repo = hub.repos.get(f"{kind}/{name}")
        if repo is None:
            self._refuse(401, "RepoNotFound", "Repository not found", body)
        elif repo.hangs:
            hub.wait()
        elif repo.status is not None:
            self._send(repo.status, b"", body)
        elif repo.gated:
            self._refuse(403, "GatedRepo", "Access to this repository is restricted", body)
        else:
            self._serve(repo, name, action, rest, body)

    def _serve(self, repo: Repo, name: str, action: str, rest: str, body: bool) -> None:
        revision, _, path = rest.partition("/")
        if rest.startswith("refs/"):
            head, middle, tail, *below = rest.split("/")
            revision, path = f"{head}/{middle}/{tail}", "/".join(below)
        commit = repo.resolve(revision or "main")
        if commit is None:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}", body)
            return
        files = repo.commits[commit]
        if action == "revision":
            siblings = [{"rfilename": file, "size": len(data)} for file, data in files.items()]
            self._json({"id": name, "sha": commit, "siblings": siblings, "private": False, "tags": []}, body)
        elif action == "tree":
            self._tree(files, path, body)
        elif action == "paths-info":
            asked = [unquote(part.partition("=")[2]).replace("+", " ") for part in self._form.split("&")]
            asked += json.loads(self._form).get("paths", []) if self._form.startswith("{") else []
            self._json([_entry(file, files[file]) for file in asked if file in files], body)
        elif path in files:
            self._file(path, files[path], commit, body, repo.cuts)
        else:
            self._refuse(404, "EntryNotFound", "Entry not found", body)

    def _file(self, path: str, data: bytes, commit: str, body: bool, cuts: dict[str, int]) -> None:
        headers = {"ETag": f'"{_etag(data)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        asked = self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").partition("-")[0]) if asked else 0
        if asked:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        if not body or not cuts.get(path):
            self._send(206 if asked else 200, data[start:], body, headers)
            return
        cuts[path] -= 1
        self._head(206 if asked else 200, len(data) - start, headers)
        self.wfile.write(b"" if asked else data[: len(data) // 2])
        self.close_connection = True

    def _tree(self, files: dict[str, bytes], path: str, body: bool) -> None:
        prefix = f"{path}/" if path else ""
        below = {file: data for file, data in files.items() if file.startswith(prefix)}
        if not below:
            self._refuse(404, "EntryNotFound", f"{path} does not exist", body)
            return
        entries = [_entry(file, data) for file, data in below.items()]
        if "recursive=true" not in self.path.lower():
            entries = [entry for entry in entries if "/" not in str(entry["path"]).removeprefix(prefix)]
            folders = {prefix + file.removeprefix(prefix).partition("/")[0] for file in below}
            entries += [{"type": "directory", "path": f, "oid": _etag(f.encode())} for f in folders - below.keys()]
        self._json(entries, body)

    def _modelscope(self, path: str, body: bool) -> None:
        """ModelScope's listing of a repository and its files."""
        kind, owner, name, *action = [*path.removeprefix("/api/v1/").split("/"), "", ""][:5]
        query = dict(parse_qsl(urlsplit(self.path).query))
        repo = self.server_hub.repos.get(f"{kind}/{owner}/{name}")
        if repo is None:
            self._json({"Code": 10010205001, "Message": "record not found", "Success": False}, body, 404)
            return
        commit = next(iter(repo.commits))
        files = repo.commits[commit]
        if action[1] in ("files", "tree"):
            entries = [
                {"Path": file, "Name": file, "Type": "blob", "Size": len(data), "Sha256": sha256(data).hexdigest()}
                for file, data in files.items()
            ]
            self._json({"Code": 200, "Data": {"Files": entries}, "Success": True, "TotalCount": len(entries)}, body)
        elif query.get("FilePath") in files:
            self._file(query["FilePath"], files[query["FilePath"]], commit, body, repo.cuts)
        else:
            self._json({"Code": 200, "Data": {}, "Success": True}, body)

    def _json(self, value: Any, body: bool, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), body, {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str, message: str, body: bool) -> None:
        self._send(status, b"", body, {"X-Error-Code": code, "X-Error-Message": message})

    def _head(self, status: int, length: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def _send(self, status: int, data: bytes, body: bool, headers: dict[str, str] | None = None) -> None:
        self._head(status, len(data), headers)
        if body:
            self.wfile.write(data)


def _route(path: str) -> tuple[str, str, str, str]:
    """Kind, name, action (revision, tree, paths-info, resolve) and the rest of a path."""
    parts = path.strip("/").split("/")
    if parts[0] == "api":
        kind, owner, name, *more = parts[1:] + [""] * 3
        return kind, f"{owner}/{name}", more[0] or "revision", "/".join(more[1:]).strip("/")
    kind = "datasets" if parts[0] == "datasets" else "models"
    owner, name, action, *more = (parts[1:] if kind == "datasets" else parts) + [""] * 3
    return kind, f"{owner}/{name}", action, "/".join(more).strip("/")


def _entry(path: str, data: bytes) -> dict[str, object]:
    return {"type": "file", "path": path, "size": len(data), "oid": _etag(data)}


def _etag(data: bytes) -> str:
    return sha1(data).hexdigest()


def json_lines(rows: list[dict[str, object]]) -> bytes:
    """A gzipped file of JSON lines, as C4 has them."""
    return gzip.compress("\n".join(json.dumps(row) for row in rows).encode())
