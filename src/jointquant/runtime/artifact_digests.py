"""What the tensors and files of an artifact were when it was written: digests.json, made and checked here alone.

config.json holds the digest of digests.json, which holds those of all else: of every tensor, of each file that a model
or its tokenizer is read from, and of the rest of config.json. The model card and generation_config.json are the user's.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from jointquant.errors import InputError, require
from jointquant.files.digests import check_digest, digest_of_bytes, digest_of_file, digest_of_stored
from jointquant.files.durable import save_json
from jointquant.hub import fetch_beside
from jointquant.models.options import DigestMode
from jointquant.models.source import DTYPES, INTEGERS
from jointquant.recipe.faults import describe
from jointquant.rotations.bundle import ROTATIONS_NAME
from jointquant.runtime.artifact_facts import EARLIER, our_quantization
from jointquant.trust.files import is_plain_name, open_regular, read_bytes
from jointquant.trust.folder import CONFIG_NAME, DIGESTS_NAME, GENERATION_NAME, small_files
from jointquant.trust.safetensors_header import LENGTH_BYTES, read_header
from jointquant.trust.strict_json import LIMIT, parse_object, read_object

QUANTIZATION, KEY = "quantization_config", "digests"
"""Where config.json holds the digest of digests.json."""

OWN = (CONFIG_NAME, DIGESTS_NAME)
"""Files that vouch for each other."""
USERS = (GENERATION_NAME,)
"""Small files that their user may edit; the model card is another."""

EDITED = 'quantize again, fetch it again, or give `digests="ignore"` if you changed it'
"""What to do about a file."""

Words = Annotated[str, Field(max_length=1 << 12)]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{32}$")]


class Table(BaseModel):
    """What digests.json holds.

    Attributes:
        config: of config.json, but for the digest of this table.
        files: of other files, by name.
        tensors: of all tensors, by name.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    config: Digest
    files: Annotated[dict[Words, Digest], Field(max_length=64)]
    tensors: Annotated[dict[Words, Digest], Field(max_length=1 << 21)]


@dataclass(frozen=True)
class Ignored:
    """Nothing is checked: the user wants it so."""

    tensors: None = None
    mode: DigestMode = "ignore"

    def file(self, name: str) -> str | None:
        """No digest."""

    def check_file(self, name: str) -> None:
        """Whatever it is."""

    def check_behind(self, shards: Iterable[Path]) -> Future[None]:
        """Done at once."""
        done: Future[None] = Future()
        done.set_result(None)
        return done


@dataclass(frozen=True)
class Written:
    """The digests of an artifact.

    Attributes:
        folder: where it lies.
        files: by name.
        tensors: by name.
    """

    folder: Path
    files: Mapping[str, str]
    tensors: Mapping[str, str]
    mode: DigestMode = "check"

    def file(self, name: str) -> str | None:
        """The digest of a file; None where nobody noted it."""
        return self.files.get(name)

    def check_file(self, name: str) -> None:
        """Raises InputError when a file that the artifact was written with is not what it was."""
        if name in self.files:
            path = self.folder / name
            found = digest_of_file(path) if path.is_file() else None
            check_digest(name, self.folder, found, self.files[name], EDITED)

    def check_small_files(self) -> None:
        """Raises InputError when any file but the rotations, which few read, is not what it was."""
        names = [name for name in self.files if name != ROTATIONS_NAME]
        fetch_beside(self.folder, names)
        for name in names:
            self.check_file(name)

    def check_behind(self, shards: Iterable[Path]) -> Future[None]:
        """Read whole shards beside the computation; the result raises InputError for the first changed tensor."""
        pool = ThreadPoolExecutor(1, "digests")
        future = pool.submit(self.check_shards, list(shards))
        pool.shutdown(wait=False)
        return future

    def check_shards(self, shards: Iterable[Path]) -> None:
        """Read whole shards, a tensor at a time. Raises InputError for the first tensor that is not what it was."""
        for name, found in digests_of_shards(shards):
            check_digest(f"tensor {name}", self.folder, found, self.tensors.get(name))


ArtifactDigests = Written | Ignored


def open_digests(folder: Path, mode: DigestMode) -> ArtifactDigests:
    """The digests of an artifact, whose small files are checked now; what else is read is checked when it is read.

    Args:
        folder: of an artifact.
        mode: whether they are asked for at all.

    Raises:
        InputError: there are none, or a file is not what it was.
    """
    if mode == "ignore":
        return Ignored()
    config, path = read_object(folder / CONFIG_NAME), folder / DIGESTS_NAME
    noted = our_quantization(config.get(QUANTIZATION), folder / CONFIG_NAME).get(KEY)
    require(noted is not None, f"{folder / CONFIG_NAME} has no digests of the artifact's tensors: {EARLIER}")
    fetch_beside(folder, [DIGESTS_NAME])
    data = read_bytes(path, LIMIT) if path.exists() else None
    check_digest(DIGESTS_NAME, folder, None if data is None else digest_of_bytes(data), str(noted))
    assert data is not None
    table = _parsed(data, path)
    check_digest(CONFIG_NAME, folder, digest_of_config(config), table.config, EDITED)
    written = Written(folder, table.files, table.tensors)
    written.check_small_files()
    return written


def _parsed(data: bytes, path: Path) -> Table:
    try:
        table = Table.model_validate(parse_object(data, str(path)))
    except ValidationError as error:
        raise InputError(f"{path} is no table of digests: {describe(error)}") from None
    for name in table.files:  # what it names may be fetched from a hub
        known = is_plain_name(name) and (bool(small_files([name])) or name == ROTATIONS_NAME)
        require(known, f"{path} names {name[:100]!r}: expected files of a model or its tokenizer")
    return table


def files_to_vouch_for(folder: Path) -> list[str]:
    """The names of what a whole artifact's model and tokenizer are read from, besides its shards and config.json."""
    names = small_files(path.name for path in folder.iterdir() if path.is_file())
    rotations = [ROTATIONS_NAME] if (folder / ROTATIONS_NAME).is_file() else []
    return [name for name in (*names, *rotations) if name not in OWN + USERS]


def write_digests(folder: Path, config: dict[str, Any], tensors: Mapping[str, str], files: Iterable[str]) -> None:
    """Write digests.json and, with its digest, config.json: the last files of an artifact.

    Args:
        folder: with everything else that the artifact holds.
        config: what config.json is to say.
        tensors: the digests of the tensors, by name.
        files: the names of the files to vouch for.

    Raises:
        ResumableError: the disk is full.
    """
    found = {name: digest_of_file(folder / name) for name in files}
    table = Table(config=digest_of_config(config), files=found, tensors=dict(tensors))
    save_json(folder / DIGESTS_NAME, table.model_dump())
    noted = {KEY: digest_of_file(folder / DIGESTS_NAME)}
    save_json(folder / CONFIG_NAME, config | {QUANTIZATION: config[QUANTIZATION] | noted})


def renew_digests(folder: Path) -> None:
    """A file came to a whole artifact after its digests were written: write them again, with its own.

    Raises:
        ResumableError: the disk is full.
    """
    table = _parsed(read_bytes(folder / DIGESTS_NAME, LIMIT), folder / DIGESTS_NAME)
    write_digests(folder, read_object(folder / CONFIG_NAME), table.tensors, files_to_vouch_for(folder))


def digest_of_config(config: dict[str, Any]) -> str:
    """Of what config.json says, but for the digest of the table; how it is written does not matter."""
    plain = json.loads(json.dumps(config))
    plain[QUANTIZATION].pop(KEY, None)
    return digest_of_bytes(json.dumps(plain, sort_keys=True).encode())


def digests_of_shards(shards: Iterable[Path]) -> Iterator[tuple[str, str]]:
    """The tensors of safetensors files as they lie there, and their digests; one tensor is in memory at a time.

    Raises:
        InputError: a file is none.
    """
    known = DTYPES | INTEGERS
    for path in shards:
        entries = read_header(path)
        with (
            open(open_regular(path), "rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
            memoryview(mapped) as data,
        ):
            start = LENGTH_BYTES + int.from_bytes(data[:LENGTH_BYTES], "little")
            for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
                require(entry.dtype in known, f"tensor {name} in {path} has dtype {entry.dtype}, which no artifact has")
                about = (name, known[entry.dtype], entry.shape)
                yield name, digest_of_stored(data[start + entry.begin : start + entry.end], about)
                _let_go(mapped, start + entry.begin, start + entry.end)


def _let_go(mapped: mmap.mmap, begin: int, end: int) -> None:
    """Bytes of a mapped file are not needed any more."""
    begin -= begin % mmap.PAGESIZE
    if begin < end:
        mapped.madvise(mmap.MADV_DONTNEED, begin, end - begin)


_HANDED: ContextVar[ArtifactDigests | None] = ContextVar("digests", default=None)


@contextmanager
def handed_over(digests: ArtifactDigests | None) -> Iterator[None]:
    """While open, who loads an artifact by transformers finds its digests opened; None: it opens them."""
    token = _HANDED.set(digests)
    try:
        yield
    finally:
        _HANDED.reset(token)


def handed() -> ArtifactDigests | None:
    """The digests that were handed over, if any."""
    return _HANDED.get()
