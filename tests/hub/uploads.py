"""What the loopback hub does when it is written to: repositories made, files taken, commits added."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from hashlib import sha1, sha256
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hub.loopback import LoopbackHub

TOKEN, OWNER = "hf_write", "me"
ENDINGS = ("/api/repos/create", "/api/validate-yaml", "/preupload/main", "/commit/main", "/lfs/objects/batch")


class Uploads:
    """Takes commits on main for ``OWNER`` from whoever sends ``TOKEN``: safetensors by LFS, others in the commit."""

    def __init__(self, hub: LoopbackHub) -> None:
        self.hub = hub
        self.blobs: dict[str, bytes] = {}  # by sha256
        self.created: dict[str, dict[str, Any]] = {}  # what each new repository was asked for with
        self.messages: list[str] = []

    @staticmethod
    def handles(path: str) -> bool:
        """Whether a POST to this path writes."""
        return path.endswith(ENDINGS)

    def put(self, data: bytes) -> None:
        """A large file."""
        self.blobs[sha256(data).hexdigest()] = data

    def post(self, path: str, body: str, headers: Mapping[str, str]) -> tuple[int, dict[str, Any]]:
        """Status and answer."""
        if path.endswith("/api/validate-yaml"):
            return 200, {"warnings": [], "errors": []}
        if headers.get("Authorization") != f"Bearer {TOKEN}":
            return 401, {"error": "Invalid username or password."}
        if path.endswith("/api/repos/create"):
            return self._create(json.loads(body))
        if path.endswith("/lfs/objects/batch"):
            return 200, {"transfer": "basic", "objects": [self._slot(o) for o in json.loads(body)["objects"]]}
        if path.endswith("/preupload/main"):
            return 200, {"files": [_mode(file["path"]) for file in json.loads(body)["files"]]}
        name = path.removeprefix("/api/models/").removesuffix("/commit/main")
        return 200, self._commit(name, [json.loads(line) for line in body.splitlines()])

    def _create(self, asked: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        from hub.loopback import Repo

        name = f"{asked['organization']}/{asked['name']}"
        if asked["organization"] != OWNER:
            return 403, {"error": "You don't have the rights to create a model under this namespace"}
        url = f"{self.hub.endpoint}/{name}"
        if f"models/{name}" in self.hub.repos:
            return 409, {"error": "You already created this model repo", "url": url}
        self.created[name] = asked
        self.hub.repos[f"models/{name}"] = Repo({"0" * 40: {}}, {"main": "0" * 40})
        return 200, {"url": url}

    def _slot(self, wanted: dict[str, Any]) -> dict[str, Any]:
        return wanted | {"actions": {"upload": {"href": f"{self.hub.endpoint}/blobs/{wanted['oid']}"}}}

    def _commit(self, name: str, lines: list[dict[str, Any]]) -> dict[str, Any]:
        repo = self.hub.repos[f"models/{name}"]
        files = dict(repo.commits[repo.branches["main"]])
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.messages.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            else:
                files[value["path"]] = self.blobs[value["oid"]]
        commit = sha1(repr(sorted(files.items())).encode()).hexdigest()
        repo.commits[commit] = files
        repo.branches["main"] = commit
        url = f"{self.hub.endpoint}/{name}/commit/{commit}"
        return {"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": ""}


def _mode(path: str) -> dict[str, Any]:
    return {"path": path, "uploadMode": "lfs" if path.endswith(".safetensors") else "regular", "shouldIgnore": False}
