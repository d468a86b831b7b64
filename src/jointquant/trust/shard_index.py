"""Which shards a model folder has, by its index or by its single file."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from jointquant.errors import require
from jointquant.trust.files import is_plain_name
from jointquant.trust.safetensors_header import check_name
from jointquant.trust.strict_json import read_object


@dataclass(frozen=True)
class WeightFormat:
    """How weights are stored: the name of a single file, of the index of several, and the ending of each."""

    single: str
    index: str
    suffix: str


SAFETENSORS = WeightFormat("model.safetensors", "model.safetensors.index.json", ".safetensors")
PICKLE = WeightFormat("pytorch_model.bin", "pytorch_model.bin.index.json", ".bin")


@dataclass(frozen=True)
class ShardIndex:
    """The shards of a folder.

    Attributes:
        files: their names.
        weight_map: tensor → shard, as the index says; None where there is a single file and no index.
    """

    files: tuple[str, ...]
    weight_map: dict[str, str] | None = None

    @cached_property
    def _placed(self) -> dict[str, set[str]]:
        """The tensors of each shard, as the index says."""
        placed: dict[str, set[str]] = {file: set() for file in self.files}
        for name, file in (self.weight_map or {}).items():
            placed[file].add(name)
        return placed

    def check_present(self, folder: Path) -> None:
        """Raises InputError when a shard is not there."""
        for file in self.files:
            require((folder / file).exists(), f"shard {folder / file} is missing: the index names it")

    def check(self, file: str, names: set[str], folder: Path) -> None:
        """Raises InputError when a shard's tensors are not those that the index places there."""
        if self.weight_map is None:
            return
        placed = self._placed[file]
        for name in sorted(placed - names):
            require(False, f"shard {folder / file} lacks tensor {name}: the index places it there")
        for name in sorted(names - placed):
            elsewhere = f"places it in {self.weight_map[name]}" if name in self.weight_map else "knows none"
            require(False, f"shard {folder / file} has tensor {name}: the index {elsewhere}")


def has_weights(folder: Path, fmt: WeightFormat) -> bool:
    """Whether a folder has weights of this format."""
    return (folder / fmt.index).is_file() or (folder / fmt.single).is_file()


def read_index(folder: Path, fmt: WeightFormat = SAFETENSORS) -> ShardIndex:
    """The shards of a folder: the single file, whatever lies beside it, or those of the index, as transformers does.

    Raises:
        InputError: no weights, an index that is none, or shards that are not plain names of files in the folder.
    """
    index = folder / fmt.index
    if (folder / fmt.single).exists() or not index.exists():
        require((folder / fmt.single).exists(), f"no weights in {folder}: expected {fmt.single} or {fmt.index}")
        return ShardIndex((fmt.single,))
    weight_map = read_object(index).get("weight_map")
    require(
        isinstance(weight_map, dict) and bool(weight_map),
        f"{index} is not an index of shards: expected JSON with a weight_map",
    )
    assert isinstance(weight_map, dict)
    for name, shard in weight_map.items():
        check_name(name, str(index))
        plain = isinstance(shard, str) and is_plain_name(shard) and shard.endswith(fmt.suffix)
        require(plain, f"{index} places {name} in {str(shard)[:100]!r}: expected the name of a {fmt.suffix} file there")
    return ShardIndex(tuple(sorted(set(weight_map.values()))), weight_map)
