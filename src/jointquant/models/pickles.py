"""Pickle weights (``pytorch_model.bin``), read only where the user asked for it, by torch's weights-only loader.

A pickle is a program. The weights-only loader runs none of it but the building of tensors, and refuses the rest.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jointquant.errors import InputError, printable, require
from jointquant.models.source import DTYPES, InFiles, Stamps, check_finite
from jointquant.trust.files import open_regular
from jointquant.trust.safetensors_header import check_name
from jointquant.trust.shard_index import PICKLE, read_index
from jointquant.trust.strict_json import LIMIT

FORBIDDEN_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")


class PickleCheckpoint(InFiles):
    """The pickle files of a model folder, mapped one at a time: tensors are read from disk as they are asked for.

    Args:
        folder: the model folder.

    Raises:
        InputError: no pickle weights, files that hold anything but named tensors, or tensors that are not where the
            index says.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._dtypes: dict[str, torch.dtype] = {}
        self._files: dict[str, str] = {}
        self._mapped: tuple[str, dict[str, Tensor]] = ("", {})
        index = read_index(folder, PICKLE)
        index.check_present(folder)
        self._stamps = Stamps(folder, index.files)
        for file in index.files:
            tensors = self._open(file)
            index.check(file, set(tensors), folder)
            self._shapes |= {name: tuple(tensor.shape) for name, tensor in tensors.items()}
            self._dtypes |= {name: tensor.dtype for name, tensor in tensors.items()}
            self._files |= dict.fromkeys(tensors, file)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor of the folder."""
        return self._shapes

    def dtype(self, name: str) -> torch.dtype:
        """The dtype of a tensor. Raises InputError for one that is no floating-point dtype."""
        stored, known = self._dtypes[name], tuple(DTYPES.values())
        require(stored in known, f"tensor {name} has dtype {stored}: expected one of {', '.join(map(str, known))}")
        return stored

    def load(self, name: str) -> Tensor:
        """One tensor, mapped from its file."""
        self._stamps.check(self._files[name])
        return self._stamps.seen(name, check_finite(name, self._open(self._files[name])[name].contiguous()))

    def _open(self, file: str) -> dict[str, Tensor]:
        """The tensors of one file; the file before is let go."""
        if self._mapped[0] != file:
            self._mapped = ("", {})
            self._mapped = (file, load_pickle(self.folder / file))
        return self._mapped[1]


def load_pickle(path: Path, lone: str | None = None) -> dict[str, Tensor]:
    """The named tensors of a pickle file, mapped.

    Args:
        path: of the file.
        lone: the name of a tensor that the file holds by itself; None: such a file is refused.

    Raises:
        InputError: not a zip archive of torch's, or one that holds anything but named dense tensors.
    """
    check_archive(path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a pickle is a program: anything can go wrong in it
        found = FORBIDDEN_GLOBAL.search(str(error))
        reason = f"it calls {found[1]}" if found else printable(str(error), 150)
        raise InputError(f"pickle {path} is refused by torch's weights-only loader: {reason}") from None
    if lone is not None and isinstance(loaded, Tensor):
        loaded = {lone: loaded}
    require(isinstance(loaded, dict), f"pickle {path} holds a {type(loaded).__name__}: expected named tensors")
    for name, value in loaded.items():
        check_name(name, f"pickle {path}")
        require(_is_plain(value), f"{name} in pickle {path} is not a dense tensor with bytes of its own: expected one")
    return dict(loaded)


def check_archive(path: Path) -> None:
    """Raises InputError unless ``path`` is a zip archive as torch writes it: stored, nothing compressed."""
    with open(open_regular(path), "rb") as file:
        expected = f"pickle {path} is not a whole zip archive as torch has saved since version 1.6: expected one"
        require(file.read(4) == b"PK\x03\x04", expected)
        try:
            with zipfile.ZipFile(file) as archive:
                entries = archive.infolist()
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
            raise InputError(expected) from None
    for entry in entries:
        stored = entry.compress_type == zipfile.ZIP_STORED and entry.compress_size == entry.file_size
        require(stored, f"pickle {path} is compressed: expected entries that are stored as they are")
        small = not entry.filename.endswith(".pkl") or entry.file_size <= LIMIT
        require(small, f"pickle {path} has a program of {entry.file_size} bytes: expected at most {LIMIT}")


def _is_plain(value: Any) -> bool:
    """Whether ``value`` is a dense CPU tensor that has all its elements: views of few bytes may claim any size."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        and value.numel() * value.element_size() <= value.untyped_storage().nbytes()
    )
