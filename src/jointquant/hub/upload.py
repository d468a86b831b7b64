"""Artifacts to a repository of the hub, through huggingface_hub."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, constants, errors

from jointquant.errors import InputError, require
from jointquant.hub.failures import HTTPError, brief, causes
from jointquant.hub.location import parse_repository
from jointquant.progress import Progress, Silent

REFUSED = (401, 403)


@dataclass(frozen=True)
class Pushed:
    """A commit that was made: the repository's address, and the commit's hash."""

    url: str
    revision: str


def push(
    folder: str | Path,
    repository: str,
    *,
    private: bool = False,
    message: str = "Upload with jointquant",
    progress: Progress | None = None,
) -> Pushed:
    """Upload an artifact, or an export of one, as one commit on the repository's main branch.

    Args:
        folder: the artifact; its model card (README.md) goes with it.
        repository: ``owner/name``; made where it is not there.
        private: whether a new repository is private; one that is there stays as it is.
        message: of the commit.
        progress: where progress is shown; None: nowhere.

    Raises:
        InputError: no artifact, no permission to write, or a hub that cannot be reached.
    """
    source, wanted = Path(folder), parse_repository(repository, "model")
    require(wanted.revision is None, f"{repository!r} names a revision: expected owner/name, push writes to its main")
    require(_is_ours(source), f"{folder} is no artifact and no export of one: expected a folder that jointquant wrote")
    require(not constants.HF_HUB_OFFLINE, f"{wanted.name} cannot be written while HF_HUB_OFFLINE is set: unset it")
    api = HfApi()
    with _one_line(wanted.name), (progress or Silent()).stage(f"upload {wanted.name}", 1) as stage:
        url = api.create_repo(wanted.name, private=private or None, exist_ok=True)
        commit = api.upload_folder(repo_id=wanted.name, folder_path=source, commit_message=message)
        stage.advance()
    return Pushed(str(url), commit.oid)


def _is_ours(folder: Path) -> bool:
    try:
        data = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    if not isinstance(data, dict):
        return False
    return "jointquant" in data or (data.get("quantization_config") or {}).get("quant_method") == "jointquant"


@contextmanager
def _one_line(name: str) -> Iterator[None]:
    """Failures of the hub's client as InputError; others are ours, and pass."""
    try:
        yield
    except errors.HFValidationError as error:
        raise InputError(f"{name} can be no name of a repository: {brief(error)}") from None
    except (errors.HfHubHTTPError, errors.LocalTokenNotFoundError, HTTPError, ConnectionError, TimeoutError) as error:
        raise InputError(_describe(name, error)) from None


def _describe(name: str, error: Exception) -> str:
    for link in causes(error):
        status = getattr(getattr(link, "response", None), "status_code", None)
        if status in REFUSED or isinstance(link, errors.LocalTokenNotFoundError):
            return (
                f"the hub at {constants.ENDPOINT} does not let you write to {name}: log in with `hf auth login`, or "
                "set HF_TOKEN, with a token that may write there"
            )
        if status is not None:
            return (
                f"{name} was not written: the hub at {constants.ENDPOINT} answered with status {status} ({brief(link)})"
            )
    return f"{name} was not written: the connection to the hub at {constants.ENDPOINT} failed ({brief(error)})"
