"""Where tensors come from: safetensors shards read lazily, or a model already in memory."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from jointquant.durable import bytes_of
from jointquant.errors import InputError, ResumableError, require

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class TensorSource(Protocol):
    """Named tensors, loaded one at a time."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor, without loading any."""

    def dtype(self, name: str) -> torch.dtype:
        """The dtype a tensor is stored in, without loading it."""

    def load(self, name: str) -> Tensor:
        """The tensor on the CPU in its stored dtype. Raises InputError when it holds NaN or infinity."""

    def identity(self) -> dict[str, Any]:
        """What tells these tensors from others, as plain data."""


def check_finite(name: str, tensor: Tensor) -> Tensor:
    """``tensor`` itself; raises InputError, with its name, when it holds NaN or infinity."""
    if tensor.is_floating_point() and not torch.isfinite(tensor).all():
        raise InputError(f"tensor {name} holds NaN or infinite values: expected finite weights")
    return tensor


class Checkpoint:
    """The safetensors files of a model folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._files: dict[str, str] = {}
        self._dtypes: dict[str, str] = {}
        self._stamps: dict[str, list[int]] = {}
        for file in self._shard_names():
            self._read_header(file)

    def _shard_names(self) -> list[str]:
        index, single = self.folder / INDEX_NAME, self.folder / SINGLE_NAME
        if single.is_file() and not index.is_file():
            return [SINGLE_NAME]
        require(
            index.is_file(),
            f"no weights in {self.folder}: expected {SINGLE_NAME} or {INDEX_NAME}",
        )
        try:
            self._index = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{index} is not an index of shards: expected JSON with a weight_map") from None
        return sorted(set(self._index.values()))

    def _read_header(self, file: str) -> None:
        path = self.folder / file
        require(path.is_file(), f"shard {path} is missing: {INDEX_NAME} names it")
        self._stamps[file] = stamp(path)
        try:
            with safe_open(path, framework="pt") as shard:
                for name in shard.keys():  # noqa: SIM118 (not a mapping)
                    self._shapes[name] = tuple(shard.get_slice(name).get_shape())
                    self._dtypes[name] = shard.get_slice(name).get_dtype()
                    self._files[name] = file
        except (SafetensorError, OSError) as error:
            raise InputError(f"shard {path} is not a whole safetensors file: {error}") from None

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor of the folder."""
        return self._shapes

    def dtype(self, name: str) -> torch.dtype:
        """The dtype of a tensor. Raises InputError for one that is no floating-point dtype."""
        stored = self._dtypes[name]
        require(stored in DTYPES, f"tensor {name} has dtype {stored}: expected one of {', '.join(DTYPES)}")
        return DTYPES[stored]

    def load(self, name: str) -> Tensor:
        """One tensor, read from its shard."""
        path = self.folder / self._files[name]
        self._check_unchanged(path)
        try:
            with safe_open(path, framework="pt") as shard:
                tensor: Tensor = shard.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise ResumableError(f"tensor {name} cannot be read from {path}: {error}") from None
        return check_finite(name, tensor)

    def identity(self) -> dict[str, Any]:
        """Size and time of the last change of every shard."""
        return {"shards": self._stamps}

    def _check_unchanged(self, path: Path) -> None:
        """Raises ResumableError when a shard is not what it was when the model was opened."""
        found = stamp(path) if path.is_file() else None
        if found != self._stamps[path.name]:
            what = "vanished" if found is None else "changed"
            raise ResumableError(
                f"shard {path} {what} while the model was being read: expected it to stay as it was, "
                "put it back and run the same command again"
            )


def stamp(path: Path) -> list[int]:
    """Size in bytes and time of the last change in nanoseconds."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


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
        total = hashlib.sha256()
        for name, tensor in self._tensors.items():
            total.update(name.encode())
            total.update(bytes_of(tensor.detach().cpu().contiguous()))
        return {"tensors": total.hexdigest()[:16]}

    def load(self, name: str) -> Tensor:
        """A tensor of the model."""
        return check_finite(name, self._tensors[name].detach().cpu())
