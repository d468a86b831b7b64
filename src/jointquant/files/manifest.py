"""What an output folder holds, by name: only that is removed when the output is replaced."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from jointquant._version import __version__
from jointquant.errors import InputError, require
from jointquant.files.durable import save_text
from jointquant.trust.strict_json import read_object

MANIFEST_NAME = "manifest.json"


def write_manifest(folder: Path) -> None:
    """List the files of a finished output in it."""
    names = sorted({*_files(folder), MANIFEST_NAME})
    text = json.dumps({"jointquant": __version__, "files": names}, indent=1, ensure_ascii=False) + "\n"
    save_text(folder / MANIFEST_NAME, text)


def check_replaceable(folder: Path) -> None:
    """Refuse to replace a folder that is not an output of ours alone.

    Raises:
        InputError: no manifest, or files that it does not list; nothing is removed.
    """
    expected = "`overwrite=True` replaces nothing but outputs of jointquant"
    try:
        listed = read_object(folder / MANIFEST_NAME).get("files")
    except InputError:
        raise InputError(f"output folder {folder} has no manifest of jointquant: {expected}") from None
    require(isinstance(listed, list), f"output folder {folder} has a manifest that lists no files: {expected}")
    strangers = sorted(set(_files(folder)) - {str(name) for name in listed or ()})
    require(not strangers, f"output folder {folder} holds {strangers[0] if strangers else ''} besides: {expected}")


def replace_folder(new: Path, out: Path) -> None:
    """Give a finished output its name; what had it before is an output of ours, or nothing.

    Raises:
        InputError: something else has come there meanwhile.
    """
    if out.is_dir() and any(out.iterdir()):
        check_replaceable(out)
    if out.exists():
        shutil.rmtree(out)
    new.rename(out)


def _files(folder: Path) -> list[str]:
    """Everything but folders, links themselves included, relative to the folder."""
    return [str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_symlink() or not p.is_dir()]
