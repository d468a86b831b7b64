"""The header of a safetensors file, checked before the library maps the file.

Format: 8 bytes, the header's length as a little-endian integer; the header, a JSON object that maps each tensor's name
to its dtype, shape and offsets; then the tensors' bytes, without gaps (https://github.com/huggingface/safetensors).
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jointquant.errors import InputError, require
from jointquant.trust.files import open_regular
from jointquant.trust.strict_json import LIMIT, parse_object

LENGTH_BYTES = 8
METADATA = "__metadata__"
MAX_NAME = 512
MAX_DIMENSIONS = 16
MAX_NUMEL = 1 << 48
BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("BOOL", "I8", "U8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
"""Bits of an element by dtype."""


@dataclass(frozen=True)
class HeaderEntry:
    """One tensor of a header: its dtype, its shape, and its bytes [begin, end) behind the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(path: Path) -> dict[str, HeaderEntry]:
    """The tensors of a safetensors file by name; only the header is read.

    Raises:
        InputError: not a regular file, a header that is none, or entries that do not describe the file byte by byte.
    """
    descriptor = open_regular(path)
    with os.fdopen(descriptor, "rb") as file:
        size = os.fstat(descriptor).st_size
        require(size >= LENGTH_BYTES, _not_whole(path, f"it has {size} bytes"))
        length = int.from_bytes(file.read(LENGTH_BYTES), "little")
        room = size - LENGTH_BYTES
        require(length <= room, _not_whole(path, f"a header of {length} bytes in a file of {size}"))
        require(length <= LIMIT, f"{path} has a header of {length} bytes: expected at most {LIMIT}")
        header = parse_object(file.read(length), f"the header of {path}")
    _check_metadata(header.pop(METADATA, None), path)
    entries = {check_name(name, str(path)): _entry(name, value, path) for name, value in header.items()}
    _check_layout(entries, room - length, path)
    return entries


def read_metadata(path: Path) -> dict[str, str]:
    """The free text of a file whose header :func:`read_header` accepts."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(LENGTH_BYTES), "little")
        metadata: dict[str, str] | None = parse_object(file.read(length), f"the header of {path}").get(METADATA)
    return metadata or {}


def check_name(name: object, where: str) -> str:
    """A tensor's name. Raises InputError for one that is empty, over-long, or has characters that do not print."""
    require(isinstance(name, str) and bool(name), f"{where} has a tensor without a name")
    assert isinstance(name, str)
    short = name if len(name) <= MAX_NAME else name[:40] + "…"
    require(len(name) <= MAX_NAME, f"{where} has a tensor name of {len(name)} characters ({short!r}): over {MAX_NAME}")
    require(name.isprintable(), f"{where} has a tensor name with control characters: {short!r}")
    return name


def _not_whole(path: Path, reason: str) -> str:
    return f"{path} is not a whole safetensors file: {reason}"


def _check_metadata(metadata: Any, path: Path) -> None:
    texts = metadata is None or (
        isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())
    )
    require(texts, f"{path} has {METADATA} that is not a mapping of strings")


def _entry(name: str, value: Any, path: Path) -> HeaderEntry:
    where = f"tensor {name} in {path}"
    keys = sorted(value) if isinstance(value, dict) else None
    require(keys == ["data_offsets", "dtype", "shape"], f"{where} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    known = isinstance(dtype, str) and dtype in BITS
    require(known, f"{where} has dtype {str(dtype)[:40]!r}: expected one of {', '.join(BITS)}")
    require(_are_sizes(shape) and len(shape) <= MAX_DIMENSIONS, f"{where} has a shape that is no list of sizes")
    numel = math.prod(shape)
    require(max([numel, *shape]) <= MAX_NUMEL, f"{where} has an absurd shape: expected at most 2^48 elements")
    require(_are_sizes(offsets) and len(offsets) == 2, f"{where} has data_offsets that are no two positions")
    begin, end = offsets
    bits = numel * BITS[dtype]
    fits = end >= begin and bits == 8 * (end - begin)
    require(fits, f"{where} has {end - begin} bytes: its shape {list(shape)} of {dtype} takes {bits / 8:g}")
    return HeaderEntry(dtype, tuple(shape), begin, end)


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _check_layout(entries: dict[str, HeaderEntry], room: int, path: Path) -> None:
    """The tensors lie one behind the other and fill the file: no byte is shared, skipped or left over."""
    position = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != position:
            what = "overlaps another" if entry.begin < position else f"leaves {entry.begin - position} bytes before it"
            raise InputError(f"tensor {name} in {path} {what}: expected tensors one behind the other")
        position = entry.end
    require(position <= room, _not_whole(path, f"its tensors take {position} bytes, {room} are there"))
    require(position == room, f"{path} has {room - position} bytes that belong to no tensor: expected none")
