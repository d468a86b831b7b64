"""Text files, read in pieces of a bounded size: UTF-8, JSON lines and parquet."""

from __future__ import annotations

import codecs
import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from jointquant.errors import InputError, require
from jointquant.text.rows import check_length, check_rows
from jointquant.trust.files import open_regular

MAX_ROW = 1 << 24
"""Bytes of one JSON line: its objects may take thirty times as much."""

PIECE = 1 << 20
"""Bytes that are read at once."""

MAX_PAGES = 1 << 30
"""Bytes that one column chunk of a parquet file may have once it is decompressed."""

ROWS_AT_ONCE = 1 << 10
MAX_TURNS = 16
"""Values a row that are believed, on average: turns of chats."""

WIDE_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)


class MissingColumnError(Exception):
    """A row has no such column; the message lists those it has, where they are known."""


def read_text(path: Path) -> str:
    """A text file without its byte order mark. Raises InputError for other than UTF-8, and for too long a text."""
    decoder, parts, total = codecs.getincrementaldecoder("utf-8")(), [], 0
    with _opened(path) as file:
        for piece in iter(lambda: file.read(PIECE), b""):
            parts.append(decoder.decode(piece))
            total += len(parts[-1])
            check_length(total)
    return "".join([*parts, decoder.decode(b"", final=True)])


def read_rows(lines: IO[bytes] | gzip.GzipFile, field: str | None) -> Iterator[Any]:
    """The values of a column of JSON lines; a line that is a string is its own value.

    Args:
        lines: at the beginning of a line.
        field: the column; None: every line is a string.

    Raises:
        InputError: a line that is too long, or no JSON object.
        MissingColumnError: a row without the column.
    """
    number = 0
    while line := lines.readline(MAX_ROW + 1):
        number += 1
        require(
            len(line) <= MAX_ROW,
            f"line {number} has more than {MAX_ROW >> 20} MiB: expected rows in lines of their own",
        )
        check_rows(number)
        if line.strip():
            yield _value(json.loads(line.decode("utf-8")), field, number)


def _value(row: Any, field: str | None, number: int) -> Any:
    if isinstance(row, str) or row is None:
        return row
    require(isinstance(row, dict), f"line {number} holds a JSON {type(row).__name__}: expected an object or a string")
    if field not in row:
        raise MissingColumnError(", ".join(map(str, row)))
    return row[field]


def jsonl_rows(path: Path, field: str) -> Iterator[Any]:
    """The values of a column of a file of JSON lines. Raises as ``read_rows``."""
    with _opened(path) as file:
        yield from read_rows(file, field)


def parquet_rows(path: Path, field: str) -> Iterator[Any]:
    """The values of a column of a parquet file, a few rows at a time.

    A column that stores each different value once stays so until its rows are asked for: what a few bytes stand for is
    counted before it is there.

    Raises:
        InputError: a column that is larger than any text, once it is decompressed.
        MissingColumnError: there is no such column.
    """
    import pyarrow.parquet  # comes with datasets

    os.close(open_regular(path))
    with pyarrow.parquet.ParquetFile(path) as file:
        names = file.schema_arrow.names
        if field not in names:
            raise MissingColumnError(", ".join(names))
        leaves = [leaf.path for leaf in map(file.schema.column, range(len(file.schema))) if _is_of(leaf.path, field)]
        _check_pages(file.metadata, field)
    with pyarrow.parquet.ParquetFile(path, read_dictionary=leaves) as file:
        for batch in file.iter_batches(ROWS_AT_ONCE, columns=[field], use_threads=False):
            yield from (value.as_py() for value in batch.column(0))


def size_of_file(path: Path, field: str) -> int:
    """Bytes of the text in a file before it is read; of a column of parquet, those of its decompressed pages.

    Raises:
        InputError: not a regular file.
    """
    descriptor = open_regular(path)
    with os.fdopen(descriptor, "rb") as file:
        if path.suffix != ".parquet":
            return os.fstat(file.fileno()).st_size
        import pyarrow.parquet

        try:
            metadata = pyarrow.parquet.read_metadata(file)
        except (ValueError, OSError) as error:
            raise InputError(f"text {path} cannot be read: {' '.join(str(error).split())[:200]}") from None
    return sum(chunk.total_uncompressed_size for chunk in _chunks(metadata, field))


def _is_of(leaf: str, field: str) -> bool:
    return leaf == field or leaf.startswith(f"{field}.")


def _chunks(metadata: Any, field: str) -> list[Any]:
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    chunks = [group.column(index) for group in groups for index in range(group.num_columns)]
    return [chunk for chunk in chunks if _is_of(chunk.path_in_schema, field)]


def _check_pages(metadata: Any, field: str) -> None:
    """What the column's chunks say of themselves, before any is decompressed."""
    check_rows(metadata.num_rows)
    chunks = _chunks(metadata, field)
    check_rows(sum(chunk.num_values for chunk in chunks) // MAX_TURNS)
    require(
        all(0 <= chunk.total_uncompressed_size <= MAX_PAGES for chunk in chunks),
        f"a part of its column {field!r} has more than {MAX_PAGES >> 20} MiB: expected smaller row groups",
    )
    check_length(sum(chunk.total_uncompressed_size for chunk in chunks) // 4)  # bytes of a character, at most


def _opened(path: Path) -> IO[bytes]:
    """A regular file behind its byte order mark. Raises InputError for UTF-16 and UTF-32."""
    file = os.fdopen(open_regular(path), "rb")
    mark = file.read(4)
    if mark.startswith(WIDE_MARKS):
        file.close()
        raise InputError("it is in UTF-16 or UTF-32: expected UTF-8")
    file.seek(len(codecs.BOM_UTF8) if mark.startswith(codecs.BOM_UTF8) else 0)
    return file
