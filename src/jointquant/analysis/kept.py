"""A folder in which comparisons keep their artifacts, and find those again that another comparison has made already.

Each recipe and seed has a folder of its own: ``artifact`` as ``quantize`` writes it, with its rotations, and
``run.json`` with what the run was and what was found. An artifact is taken again only where a run would write the same
bytes: same model, settings, calibration windows, device, number of threads and versions.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jointquant.errors import InputError
from jointquant.files.durable import room_needed, save_json
from jointquant.files.manifest import write_manifest
from jointquant.files.output import check_output, output_folder
from jointquant.models.source import StoredTensors
from jointquant.run.identity import identity_of
from jointquant.run.job import Job
from jointquant.run.journal import differences
from jointquant.trust.strict_json import read_object

LOG = logging.getLogger("jointquant")
ARTIFACT_NAME, RUN_NAME = "artifact", "run.json"


@dataclass(frozen=True)
class KeptRun:
    """What was kept of a recipe with a seed.

    Attributes:
        artifact: its folder.
        facts: what was found, as plain data.
    """

    artifact: Path
    facts: dict[str, Any]


@dataclass(frozen=True)
class Keep:
    """A folder of kept runs."""

    folder: Path

    def check(self, names: Mapping[str, object]) -> None:
        """Raises InputError where the folder is no place for output, or holds something else under one of the names."""
        for name in names:
            check_output(self.folder / name, overwrite=True)

    def find(self, name: str, job: Job) -> KeptRun | None:
        """What is kept under a name, where it is what ``job`` would write; else None, and a line that says why."""
        folder = self.folder / name
        if not (folder / RUN_NAME).is_file():
            return None
        try:
            data = read_object(folder / RUN_NAME)
        except InputError as error:
            LOG.info("%s; it is made again", error)
            return None
        why = self.why_not(data, identity_of_job(job), job)
        if why is None and isinstance(data.get("facts"), dict) and (folder / ARTIFACT_NAME).is_dir():
            LOG.info("%s is taken from %s", name, folder)
            return KeptRun(folder / ARTIFACT_NAME, data["facts"])
        LOG.info("%s is of another run and is made again: %s", folder, why or "it is not whole")
        return None

    def put(self, name: str, job: Job, facts: dict[str, Any]) -> None:
        """Copy a job's artifact, with what was found, in the place of what was kept under the name.

        Raises:
            InputError: something else lies there.
            ResumableError: the disk is full.
        """
        size = sum(path.stat().st_size for path in job.artifact.rglob("*") if path.is_file())
        with room_needed(self.folder / name, size), output_folder(self.folder / name, overwrite=True) as folder:
            shutil.copytree(job.artifact, folder / ARTIFACT_NAME)
            write_manifest(folder / ARTIFACT_NAME)
            read = job.stream.stored.digests()
            save_json(folder / RUN_NAME, {"identity": identity_of_job(job), "read": read, "facts": facts})

    def why_not(self, data: dict[str, Any], identity: dict[str, Any], job: Job) -> str | None:
        """Why what was kept is not what ``job`` would write, which is ``identity``; None: it is."""
        found = differences(data.get("identity"), identity)
        if found:
            return "; ".join(found)
        stored: StoredTensors = job.stream.stored
        read = data.get("read")
        name = stored.changed(read) if isinstance(read, dict) else "the model"
        return None if name is None else f"{name} is not what it was"


def identity_of_job(job: Job) -> dict[str, Any]:
    """What one recipe's run is, as plain data that JSON holds."""
    windows, at_once = {job.recipe.calibration: job.windows}, job.workspace.batch_tokens
    assert at_once is not None  # a job that was planned says how many
    identity = identity_of(job.subject, {"artifact": job.recipe}, windows, at_once, {})
    plain: dict[str, Any] = json.loads(json.dumps(identity))
    return plain
