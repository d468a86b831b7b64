"""Where a fingerprint lies: in a folder, in the metadata of a GGUF file, or by itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jointquant.errors import InputError, require
from jointquant.fingerprint.record import Fingerprint, load_fingerprint, parsed_fingerprint
from jointquant.models.options import DigestMode
from jointquant.runtime.artifact_digests import open_digests
from jointquant.runtime.artifact_facts import is_artifact
from jointquant.trust.folder import FINGERPRINT_NAME, check_folder
from jointquant.trust.strict_json import LIMIT, parse_object

GGUF_KEY = "jointquant.fingerprint"
"""Of a GGUF file's metadata: the fingerprint as JSON."""

NONE = "expected an artifact or an export of this version; quantize or export it again"


def fingerprint_at(path: Path, digests: DigestMode = "check") -> Fingerprint:
    """The fingerprint of an artifact, an export, a GGUF file, or a fingerprint.json by itself.

    Raises:
        InputError: there is none, or it is not what was written.
    """
    require(path.exists(), f"no such artifact or export: {path}")
    if path.is_dir():
        check_folder(path)
        require((path / FINGERPRINT_NAME).is_file(), f"{path} carries no {FINGERPRINT_NAME}: {NONE}")
        if is_artifact(path):
            open_digests(path, digests)
        return load_fingerprint(path / FINGERPRINT_NAME)
    return of_gguf(path) if is_gguf(path) else load_fingerprint(path)


def is_gguf(path: Path) -> bool:
    """Whether a file begins as GGUF files do."""
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"


def of_gguf(path: Path) -> Fingerprint:
    """The fingerprint in a GGUF file's metadata. Raises InputError when there is none."""
    return parsed_fingerprint(gguf_metadata(path, GGUF_KEY), str(path))


def gguf_metadata(path: Path, key: str) -> dict[str, Any]:
    """A JSON object in a GGUF file's metadata. Raises InputError for a file that has none, or is damaged."""
    from gguf import GGUFReader

    try:
        field = GGUFReader(path).fields.get(key)
        text = None if field is None else field.contents()
    except (ValueError, KeyError, IndexError, UnicodeDecodeError, OverflowError) as error:
        raise InputError(f"{path} is a damaged GGUF file: {' '.join(str(error).split())[:200]}") from None
    require(isinstance(text, str) and len(text) <= LIMIT, f"{path} carries no {key}: {NONE}")
    return parse_object(str(text).encode(), str(path))


def gguf_text(fingerprint: Fingerprint) -> str:
    """A fingerprint as a GGUF file's metadata holds it."""
    return json.dumps(fingerprint.model_dump(mode="json"), sort_keys=True, ensure_ascii=False)
