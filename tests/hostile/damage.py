"""Ways to damage a model folder."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
UP = "model.layers.1.mlp.up_proj.weight"
NORM = "model.norm.weight"

Damage = Callable[[Path], object]
Header = dict[str, Any]


def config(**changes: object) -> Damage:
    """Change settings of config.json."""
    return edit_json("config.json", lambda data: data.update(changes))


def edit_json(name: str, edit: Callable[[Header], object]) -> Damage:
    """Change the JSON object in a file."""

    def damage(folder: Path) -> None:
        data = json.loads((folder / name).read_text())
        edit(data)
        (folder / name).write_text(json.dumps(data))

    return damage


def write(name: str, content: str | bytes) -> Damage:
    """Write a file."""

    def damage(folder: Path) -> None:
        data = content.encode() if isinstance(content, str) else content
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_bytes(data)

    return damage


def remove(pattern: str) -> Damage:
    """Remove files."""
    return lambda folder: [path.unlink() for path in folder.glob(pattern)]


def both(*damages: Damage) -> Damage:
    """One after the other."""
    return lambda folder: [damage(folder) for damage in damages]


def huge(name: str, size: int = 1 << 40) -> Damage:
    """A sparse file that claims a great size."""

    def damage(folder: Path) -> None:
        (folder / name).touch()
        os.truncate(folder / name, size)

    return damage


def pipe(name: str) -> Damage:
    """A pipe nobody writes to in the place of a file."""

    def damage(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return damage


def link_out(name: str, target: str | None = None) -> Damage:
    """Move a file out of the folder and leave a link to it, or to another target."""

    def damage(folder: Path) -> None:
        outside = folder.parent / f"outside-{name}"
        if target is None:
            (folder / name).rename(outside)
        else:
            (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target or outside)

    return damage


def tensors(edit: Callable[[dict[str, torch.Tensor]], object], name: str = SINGLE) -> Damage:
    """Change the tensors of a shard; the file stays a good one."""

    def damage(folder: Path) -> None:
        loaded = load_file(folder / name)
        edit(loaded)
        save_file(loaded, folder / name, metadata={"format": "pt"})

    return damage


def raw_header(path: Path) -> tuple[Header, bytes]:
    """The header of a shard, and the bytes behind it."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def raw_shard(header: bytes, body: bytes = b"", length: int | None = None) -> bytes:
    """A shard's bytes as they would be written for any header."""
    return (len(header) if length is None else length).to_bytes(8, "little") + header + body


def header(edit: Callable[[Header], object], name: str = SINGLE) -> Damage:
    """Change the header of a shard, and nothing behind it."""

    def damage(folder: Path) -> None:
        data, body = raw_header(folder / name)
        edit(data)
        (folder / name).write_bytes(raw_shard(json.dumps(data).encode(), body))

    return damage


def entry(name: str = UP, **changes: object) -> Damage:
    """Change what a header says of one tensor."""
    return header(lambda data: data[name].update(changes))


def shards(folder: Path) -> None:
    """Spread the tensors over two shards and an index."""
    loaded = load_file(folder / SINGLE)
    names = sorted(loaded)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for shard, part in parts.items():
        save_file({name: loaded[name] for name in part}, folder / shard, metadata={"format": "pt"})
    (folder / SINGLE).unlink()
    weight_map = {name: shard for shard, part in parts.items() for name in part}
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))


def index(edit: Callable[[dict[str, object]], object]) -> Damage:
    """Two shards, and an index whose weight_map is changed."""
    return both(shards, edit_json(INDEX, lambda data: edit(data["weight_map"])))


def to_pickle(folder: Path, **options: Any) -> None:
    """Store the weights as pytorch_model.bin instead."""
    torch.save(load_file(folder / SINGLE), folder / "pytorch_model.bin", **options)
    (folder / SINGLE).unlink()


class Malicious:
    """Unpickled, it would write a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.target}",)


def pickle_of(make: Callable[[Path], object]) -> Damage:
    """A pickle of anything, as torch saves it, in the place of the weights."""

    def damage(folder: Path) -> None:
        (folder / SINGLE).unlink()
        torch.save(make(folder), folder / "pytorch_model.bin")

    return damage


def compressed_pickle(folder: Path) -> None:
    """A zip archive whose entries are compressed: a small file that unpacks to a large one."""
    to_pickle(folder)
    path = folder / "pytorch_model.bin"
    stored, packed = zipfile.ZipFile(path), io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in stored.namelist():
            archive.writestr(name, stored.read(name))
    path.write_bytes(packed.getvalue())


def old_pickle(folder: Path) -> None:
    """A bare pickle that calls a function."""
    (folder / SINGLE).unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Malicious(folder / "owned")))


CODE = "import pathlib\npathlib.Path(__file__).with_name('owned').touch()\nclass C: pass\n"


def own_code(**auto_map: str) -> Damage:
    """Python beside the model that would write a file, named by both configurations."""
    return both(
        write("own.py", CODE),
        config(auto_map=auto_map),
        edit_json("tokenizer_config.json", lambda data: data.update(auto_map=auto_map)),
    )
