"""What an artifact can be exported to, by name."""

from __future__ import annotations

from typing import Literal, get_args

from jointquant.errors import require, unknown

Format = Literal["dense", "compressed-tensors", "gguf", "native"]
EXPORTS: tuple[Format, ...] = get_args(Format)


def check_format(name: str) -> None:
    """Raises InputError for a name that is no format."""
    require(name in EXPORTS, unknown("format", name, EXPORTS))
