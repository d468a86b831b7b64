"""The journal of a run: what is done and lies on the disk, so that a killed run goes on where it was.

A run fills ``.NAME.partial`` beside the folder it was asked for::

    .NAME.partial/
      lock            held while a run works here; the system lets it go when the process dies
      run.json        what the run is: model, recipe, windows, versions, batch
      journal.jsonl   one line a finished step, flushed when the files it names are
      work/           samples and hidden states
      artifact/       becomes NAME when it is complete
      complete.json   what the run was and what it reports; written last, removed last
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jointquant.distributed.ranks import Ranks
from jointquant.errors import DamageWarning, InputError, ResumableError, require
from jointquant.files.digests import digest_of_bytes, digest_of_file
from jointquant.files.durable import flush, save_json
from jointquant.files.manifest import replace_folder, write_manifest
from jointquant.files.working_folder import check_ours, discard, empty, locked, make_working_folder, remove
from jointquant.run.entries import CURRENT, READ, Entry, Lines, Named, whole
from jointquant.trust.permissions import seal

RUN_NAME, JOURNAL_NAME = "run.json", "journal.jsonl"
COMPLETE_NAME = "complete.json"
SHOWN = 3
"""Differences that an error message names."""


class Journal:
    """An open run.

    Args:
        folder: ``.NAME.partial``.
        entries: what was done before.
        lines: the file; None: somebody else writes it.
    """

    def __init__(self, folder: Path, entries: list[Entry], lines: Lines | None = None) -> None:
        self.folder, self._entries, self._lines = folder, entries, lines
        self.resumed = bool(entries)
        self.artifact, self.work = folder / "artifact", folder / "work"
        self.make(self.artifact)
        self.make(self.work)

    def read(self) -> dict[str, str]:
        """The model's tensors that all finished steps have read, and their digests."""
        return {name: digest for entry in self._entries for name, digest in entry.facts.get(READ, {}).items()}

    def all_entries(self) -> list[Entry]:
        """The finished steps of all passes, in order."""
        return list(self._entries)

    def entries(self, stage: str) -> list[Entry]:
        """The finished steps of a pass, in order."""
        return [entry for entry in self._entries if entry.stage == stage]

    def part(self, name: str, artifact: Path | None = None) -> Journal:
        """A part of the run: its own steps, and a folder of its own for its work; ``artifact`` is what it fills."""
        return JournalPart(self, name, artifact or self.artifact)

    def make(self, folder: Path) -> None:
        """Make a folder of the run."""
        if self._lines is not None:
            require(not folder.is_symlink(), f"{folder} is a link: expected none, it is where work is done")
            folder.mkdir(parents=True, exist_ok=True)

    def record(
        self, stage: str, step: int, files: list[Path], facts: dict[str, Any], used_up: Sequence[Path] = ()
    ) -> None:
        """A step is done: its files are on the disk. Raises ResumableError when the disk is full.

        The folders ``used_up``, whose files nobody needs any more, are removed once that is written.
        """
        if self._lines is None:
            return
        names = {name for entry in self._entries for name in entry.files}
        gone = sorted(n for n in names if any((self.folder / n).is_relative_to(folder) for folder in used_up))
        left: Named = {str(path.relative_to(self.folder)): digest_of_file(path) for path in files}
        entry = Entry(stage, step, dict.fromkeys(gone) | left, facts)
        self._lines.append(entry)
        self._entries.append(entry)
        for folder in used_up:
            shutil.rmtree(folder, ignore_errors=True)

    def forget(self, stage: str, why: str) -> None:
        """A pass begins again, for something of it is damaged."""
        self._entries = [entry for entry in self._entries if entry.stage != stage]
        if self._lines is not None:
            warn_of_damage(f"{self.folder}: {why}, {stage} begins again")
            self._lines.rewrite(self._entries)

    def complete(self, report: dict[str, Any]) -> None:
        """All is done but for the artifact's name."""
        if self._lines is not None:
            found = {"identity": _load(self.folder / RUN_NAME), "report": report}
            save_json(self.folder / COMPLETE_NAME, found | {"digest": _digest(found)})


class JournalPart(Journal):
    """A part of a run that has several: its steps stand in the run's journal, behind the part's name.

    Args:
        whole: the run's.
        name: the part's.
        artifact: what the part fills.
    """

    def __init__(self, whole: Journal, name: str, artifact: Path) -> None:
        self.whole, self.name, self.folder, self.resumed = whole, name, whole.folder, whole.resumed
        self._lines = whole._lines
        self.artifact, self.work = artifact, whole.work / name
        self.make(artifact)
        self.make(self.work)

    def entries(self, stage: str) -> list[Entry]:
        """The part's alone."""
        return self.whole.entries(f"{self.name}/{stage}")

    def record(
        self, stage: str, step: int, files: list[Path], facts: dict[str, Any], used_up: Sequence[Path] = ()
    ) -> None:
        """In the run's journal."""
        self.whole.record(f"{self.name}/{stage}", step, files, facts, used_up)

    def forget(self, stage: str, why: str) -> None:
        """In the run's journal."""
        self.whole.forget(f"{self.name}/{stage}", why)


@contextmanager
def join_journal(out: Path, identity: dict[str, Any], overwrite: bool, ranks: Ranks) -> Iterator[Journal]:
    """The run that fills ``out``, as ``open_journal``, of which one rank writes the journal."""
    if not ranks.leads:
        yield Journal(partial_folder(out), ranks.tell([]))
        return
    with open_journal(out, identity, overwrite) as journal:
        ranks.tell(journal.all_entries())
        yield journal


@contextmanager
def open_journal(out: Path, identity: dict[str, Any], overwrite: bool) -> Iterator[Journal]:
    """The run that fills ``out``: a new one, or the unfinished one of the same identity.

    When the block ends well, the artifact gets its name and the rest is removed. When it ends badly, finished steps
    are kept for the next run, unless the input is at fault.

    Args:
        out: the folder that was asked for.
        identity: what must be the same for a run to go on.
        overwrite: discard an unfinished run that is another one.

    Raises:
        InputError: an unfinished run that differs, or one that is at work.
    """
    folder = partial_folder(out)
    new_parents = make_working_folder(folder)
    with locked(folder, out):
        journal = Journal(folder, *_opened(folder, out, identity, overwrite))
        try:
            yield journal
        except BaseException as error:
            stays = isinstance(error, ResumableError) or not isinstance(error, InputError)
            if not (stays and journal.all_entries()):
                discard(folder, new_parents)
            raise
        write_manifest(journal.artifact)
        seal(journal.artifact)
        replace_folder(journal.artifact, out)
        flush(out.absolute().parent)
        _clear(folder)


def partial_folder(out: Path) -> Path:
    """Where a run that is to fill ``out`` works."""
    return out.with_name(f".{out.name}.partial")


def begun(out: Path) -> dict[str, Any]:
    """What the unfinished run that fills ``out`` is; empty where there is none."""
    folder = partial_folder(out)
    if (folder / COMPLETE_NAME).is_file():
        found = _load(folder / COMPLETE_NAME).get("identity")
    else:
        found = _load(folder / RUN_NAME) if (folder / RUN_NAME).is_file() else {}
    return found if isinstance(found, dict) else {}


def nearly_finished(out: Path) -> bool:
    """Whether a run was killed between giving its artifact the name and clearing up."""
    if not (out.name and os.path.isdir(out)):  # out is not checked yet: its name may be none, or too long
        return False
    folder = partial_folder(out)
    return not os.path.exists(folder / "artifact") and os.path.isfile(folder / COMPLETE_NAME)


def finished(out: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """What a run of this identity reported that was killed after its artifact had got its name; None: there is none.

    What it left behind is removed.
    """
    folder = partial_folder(out)
    if not nearly_finished(out):
        return None
    check_ours(folder)
    with locked(folder, out):
        found = _load(folder / COMPLETE_NAME)
        whole_report = found.pop("digest", None) == _digest(found)
        if not whole_report or differences(found.get("identity"), _plain(identity)):
            return None
        _clear(folder)
    report: dict[str, Any] = found["report"]
    return report


def _opened(folder: Path, out: Path, identity: dict[str, Any], overwrite: bool) -> tuple[list[Entry], Lines]:
    """What an unfinished run in ``folder`` has done; where there is none to go on with, the folder is made ready."""
    run, wanted = folder / RUN_NAME, _plain(identity)
    lines = Lines(folder / JOURNAL_NAME, _digest(wanted))
    if run.is_file():
        different = differences(_load(run), wanted)
        if not different:
            return _checked(folder, lines), lines
        require(
            overwrite,
            f"an unfinished run for {out} is another one: {'; '.join(different)}, "
            "expected the same command, another `out`, or `overwrite=True` to discard it",
        )
    empty(folder)
    save_json(run, wanted)
    return [], lines


def _checked(folder: Path, lines: Lines) -> list[Entry]:
    """The entries of which everything is as it was written; the rest is cut away, and files that none of them names."""
    entries, cut = lines.read()
    good, damaged = whole(entries, folder)
    if damaged is not None:
        warn_of_damage(f"{folder / damaged} is not what was written: what came after it is done again")
        lines.rewrite(good)
    elif cut:
        warn_of_damage(f"{lines.path} does not fit together behind line {len(good)}: what came after it is done again")
    _remove_strangers(folder, good)
    return good


def _remove_strangers(folder: Path, entries: list[Entry]) -> None:
    """Files in artifact and work that no step left; hidden states and the like, which the last steps name, stay."""
    named = {folder / name for entry in entries for name, digest in entry.files.items() if digest is not None}
    current = {name for entry in entries for name in entry.facts.get(CURRENT, {})}
    for part in (folder / "artifact", folder / "work"):
        for path in part.rglob("*") if part.is_dir() else ():
            if (path.is_symlink() or path.is_file()) and path not in named and path.name not in current:
                path.unlink()


def warn_of_damage(line: str) -> None:
    """Tell the user, in one line; the work goes on."""
    warnings.warn(line, DamageWarning, stacklevel=2)


def _digest(data: Any) -> str:
    return digest_of_bytes(json.dumps(data, sort_keys=True).encode())


def differences(there: Any, here: Any) -> list[str]:
    """Where two identities differ, in words."""
    old, new = dict(_flat(there)), dict(_flat(here))
    keys = [key for key in dict.fromkeys([*old, *new]) if old.get(key) != new.get(key)]
    words = [f"{key} was {_word(old.get(key))}, now {_word(new.get(key))}" for key in keys]
    return words if len(words) <= SHOWN else [*words[:SHOWN], f"{len(words) - SHOWN} more differences"]


def _flat(data: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(data, dict) and data:
        for key, value in data.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, data


def _word(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _plain(identity: dict[str, Any]) -> Any:
    return json.loads(json.dumps(identity))


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {"run": "unreadable"}


def _clear(folder: Path) -> None:
    """Remove a finished run's folder; whoever is killed on the way leaves what it was until the end."""
    for path in sorted(folder.iterdir(), key=lambda path: path.name == COMPLETE_NAME):
        remove(path)
    folder.rmdir()
