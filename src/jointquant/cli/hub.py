"""The verbs ``download`` and ``push``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jointquant.cli.options import HubOption, JsonOption, RevisionOption
from jointquant.cli.output import finish, show, shown_progress
from jointquant.errors import require


def download(
    repository: Annotated[
        str | None, typer.Argument(metavar="REPO", help="A hub id: owner/name, or owner/name@revision.")
    ] = None,
    every: Annotated[
        str | None,
        typer.Option("--all", metavar="LIST", help="In place of REPO, all of a list: documents, or a YAML file."),
    ] = None,
    only_sizes: Annotated[bool, typer.Option("--dry-run", help="With --all: print the sizes and stop.")] = False,
    hub: HubOption = "hf",
    dataset: Annotated[bool, typer.Option("--dataset", help="REPO is a data set.")] = False,
    revision: RevisionOption = None,
    out: Annotated[Path | None, typer.Option(help="A folder for the files (default: the hub's cache).")] = None,
    as_json: JsonOption = False,
) -> None:
    """Fetch a model or a data set from a hub, and print where it lies. What is there already is not fetched again.

    A list is a YAML file with `models`, hub ids, and `texts`: wikitext2, ptb, c4. `documents` names those of the
    published tables. Sizes are told first.

    Example: jointquant download --all documents --dry-run
    """
    require((repository is None) != (every is None), "expected REPO, or --all with a list of them")
    if every is not None:
        plain = hub == "hf" and not dataset and revision is None and out is None
        require(
            plain, "--all fetches to the cache what the list names: expected no --hub, --dataset, --revision, --out"
        )
        _download_all(every, only_sizes, as_json)
        return
    require(not only_sizes, "--dry-run is of --all: expected a list")
    assert repository is not None
    from jointquant.hub import download as run

    found = run(repository, hub=hub, dataset=dataset, revision=revision, out=out, progress=shown_progress())
    if not as_json:
        print(str(found.folder))
    finish({"repository": repository, "path": str(found.folder), "revision": found.revision}, as_json)


def _download_all(source: str, only_sizes: bool, as_json: bool) -> None:
    from rich.table import Table

    from jointquant.hub.downloads import Downloads
    from jointquant.text.download_lists import wanted_of

    progress = shown_progress()
    found = Downloads.of(wanted_of(source), progress)
    table = Table("name", "size (GB)", "to fetch (GB)", title=f"list {source}")
    for each in found.listed:
        table.add_row(each.wanted.name, f"{each.size / 1e9:.3f}", f"{each.missing / 1e9:.3f}")
    for name in found.refused:
        table.add_row(name, "cannot be had", "")
    total, missing = sum(each.size for each in found.listed), found.missing
    table.add_row("together", f"{total / 1e9:.3f}", f"{missing / 1e9:.3f}")
    rows = [{"name": each.wanted.name, "size_bytes": each.size, "missing_bytes": each.missing} for each in found.listed]
    show(table, as_json)
    if not only_sizes:
        found.fetch(progress)
    finish({"list": source, "rows": rows, "refused": found.refused, "missing_bytes": missing}, as_json)


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
