"""The verbs ``download`` and ``push``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jointquant.cli.options import HubOption, JsonOption, RevisionOption
from jointquant.cli.output import finish, shown_progress


def download(
    repository: Annotated[str, typer.Argument(metavar="REPO", help="A hub id: owner/name, or owner/name@revision.")],
    hub: HubOption = "hf",
    dataset: Annotated[bool, typer.Option("--dataset", help="REPO is a data set.")] = False,
    revision: RevisionOption = None,
    out: Annotated[Path | None, typer.Option(help="A folder for the files (default: the hub's cache).")] = None,
    as_json: JsonOption = False,
) -> None:
    """Fetch a model or a data set from a hub, and print where it lies. What is there already is not fetched again."""
    from jointquant.hub import download as run

    found = run(repository, hub=hub, dataset=dataset, revision=revision, out=out, progress=shown_progress())
    if not as_json:
        print(str(found.folder))
    finish({"repository": repository, "path": str(found.folder), "revision": found.revision}, as_json)


def push(
    folder: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="An artifact, or an export of one.")],
    repository: Annotated[str, typer.Argument(metavar="REPO", help="A hub id: owner/name; made if it is not there.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    message: Annotated[str, typer.Option(help="The commit's message.")] = "Upload with jointquant",
    as_json: JsonOption = False,
) -> None:
    """Upload ARTIFACT to a repository of the hub, its model card included, as one commit.

    Log in with `hf auth login`, or set HF_TOKEN. Example: jointquant push ./llama-int4 me/llama-int4 --private
    """
    from jointquant.hub import push as run

    pushed = run(folder, repository, private=private, message=message, progress=shown_progress())
    if not as_json:
        print(f"{pushed.url} at {pushed.revision}")
    finish({"repository": repository, "url": pushed.url, "revision": pushed.revision}, as_json)
