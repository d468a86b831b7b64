"""Where tensors come from: safetensors shards read lazily, or a model already in memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from jointquant.errors import InputError, ResumableError, require
from jointquant.files.digests import check_digest, digest_of_bytes, digest_of_tensors
from jointquant.trust.safetensors_header import HeaderEntry, read_header
from jointquant.trust.shard_index import SAFETENSORS, read_index

INDEX_NAME, SINGLE_NAME = SAFETENSORS.index, SAFETENSORS.single
LARGEST = 1e18
"""The square of a larger weight, summed over channels, is more than float32 holds."""
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
INTEGERS = {"I8": torch.int8, "I16": torch.int16, "I32": torch.int32}
"""What artifacts have besides, as files call them."""


class TensorSource(Protocol):
    """Named tensors, loaded one at a time."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor, without loading any."""

    def dtype(self, name: str) -> torch.dtype:
        """The dtype a tensor is stored in, without loading it."""

    def load(self, name: str) -> Tensor:
        """The tensor on the CPU in its stored dtype. Raises InputError when it holds NaN or infinity."""


class StoredTensors(TensorSource, Protocol):
    """Tensors under the names that they are stored by, and what tells them from others."""

    def identity(self) -> dict[str, Any]:
        """What tells these tensors from others, as plain data."""

    def digests(self) -> dict[str, str]:
        """Those of the stored tensors that have been read so far, by name; none where identity has all."""

    def changed(self, digests: Mapping[str, str]) -> str | None:
        """The first tensor that is not what it was when it had its digest; None: all are. Reads them."""


def bytes_of(source: TensorSource) -> int:
    """Of all tensors, as they are stored."""
    return sum(math.prod(shape) * source.dtype(name).itemsize for name, shape in source.shapes().items())


def check_finite(name: str, tensor: Tensor) -> Tensor:
    """``tensor`` itself; raises InputError, with its name, when it holds NaN, infinity, or more than ``LARGEST``."""
    if not tensor.is_floating_point() or not tensor.numel():
        return tensor
    work = tensor.float() if tensor.itemsize == 1 else tensor  # torch finds no maximum of eight bits
    peak = torch.maximum(work.amax(), -work.amin()).item()  # NaN where there is one
    if not math.isfinite(peak):
        raise InputError(f"tensor {name} holds NaN or infinite values: expected finite weights")
    if peak > LARGEST:
        raise InputError(
            f"tensor {name} holds values up to {peak:.3g}, whose products overflow float32: expected weights below "
            f"{LARGEST:.0e}, scale it down where the model is made"
        )
    return tensor


class Stamps:
    """What tells the files of a folder from changed ones: size in bytes and time of the last change in nanoseconds.

    Args:
        folder: the model's.
        files: their names.
        written: the digest that each tensor must have; None: any, for nobody noted them.

    Attributes:
        digests: of each tensor that was read: what a file holds may change without either.
    """

    def __init__(self, folder: Path, files: Iterable[str], written: Mapping[str, str] | None = None) -> None:
        self.folder, self.written = folder, written
        self.digests: dict[str, str] = {}
        self.found = {file: _stamp(folder / file) for file in files}

    def check(self, file: str) -> Path:
        """The path of a file. Raises ResumableError when it is not what it was when the model was opened."""
        path = self.folder / file
        found = _stamp(path) if path.is_file() else None
        if found != self.found[file]:
            what = "vanished" if found is None else "changed"
            raise ResumableError(
                f"shard {path} {what} while the model was being read: expected it to stay as it was, "
                "put it back and run the same command again"
            )
        return path

    def seen(self, name: str, tensor: Tensor) -> Tensor:
        """``tensor`` itself, whose digest is taken and checked the first time. Raises InputError for another."""
        if name not in self.digests:
            found = digest_of_tensors({name: tensor})
            if self.written is not None:
                check_digest(f"tensor {name}", self.folder, found, self.written.get(name))
            self.digests[name] = found
        return tensor

    def changed(self, digests: Mapping[str, str], load: Callable[[str], Tensor]) -> str | None:
        """The first tensor that is not what it was; None: all are."""
        return next((n for n, digest in digests.items() if digest_of_tensors({n: load(n)}) != digest), None)


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


class InFiles(StoredTensors):
    """Tensors in the files of a folder."""

    _stamps: Stamps

    def identity(self) -> dict[str, Any]:
        """Size and time of the last change of every file."""
        return {"shards": self._stamps.found}

    def digests(self) -> dict[str, str]:
        """Of the tensors that have been read."""
        return self._stamps.digests.copy()

    def changed(self, digests: Mapping[str, str]) -> str | None:
        """Reads and compares."""
        return self._stamps.changed(digests, self.load)


class Checkpoint(InFiles):
    """The safetensors files of a model folder; every header is checked before a tensor is read.

    Args:
        folder: the model folder.
        written: the digests that its tensors must have; None: any.

    Raises:
        InputError: no weights, an index or a header that is none, or tensors that are not where the index says.
    """

    def __init__(self, folder: Path, written: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.entries: dict[str, HeaderEntry] = {}
        self._files: dict[str, str] = {}
        index = read_index(folder)
        index.check_present(folder)
        self._stamps = Stamps(folder, index.files, written)
        for file in index.files:
            entries = read_header(folder / file)
            index.check(file, set(entries), folder)
            self.entries |= entries
            self._files |= dict.fromkeys(entries, file)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor of the folder."""
        return {name: entry.shape for name, entry in self.entries.items()}

    def files(self) -> dict[str, str]:
        """The file of every tensor, by name."""
        return self._files

    def dtype(self, name: str) -> torch.dtype:
        """The dtype of a tensor. Raises InputError for one that is no floating-point dtype."""
        stored = self.entries[name].dtype
        require(stored in DTYPES, f"tensor {name} has dtype {stored}: expected one of {', '.join(DTYPES)}")
        return DTYPES[stored]

    def kind(self, name: str) -> torch.dtype:
        """As ``dtype``, of a tensor that may be of integers too."""
        return (DTYPES | INTEGERS)[self.entries[name].dtype]

    def load(self, name: str) -> Tensor:
        """One tensor, read from its shard. Raises InputError when it is not what was written."""
        path = self._stamps.check(self._files[name])
        try:
            with safe_open(path, framework="pt") as shard:
                tensor: Tensor = shard.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise ResumableError(f"tensor {name} cannot be read from {path}: {error}") from None
        return check_finite(name, self._stamps.seen(name, tensor))


class InMemory:
    """The tensors of a model that is already loaded; it is read, never changed."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._tensors = model.state_dict()

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor of the model."""
        return {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}

    def dtype(self, name: str) -> torch.dtype:
        """The dtype of a tensor."""
        return self._tensors[name].dtype

    def identity(self) -> dict[str, Any]:
        """A fingerprint of all tensors."""
        digests = (digest_of_tensors({name: tensor.detach().cpu()}) for name, tensor in self._tensors.items())
        return {"tensors": digest_of_bytes("".join(digests).encode())}

    def digests(self) -> dict[str, str]:
        """None: the identity has all."""
        return {}

    def changed(self, digests: Mapping[str, str]) -> str | None:
        """As the identity says, nothing."""
        return None

    def load(self, name: str) -> Tensor:
        """A tensor of the model."""
        return check_finite(name, self._tensors[name].detach().cpu())
