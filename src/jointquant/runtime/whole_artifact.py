"""An artifact is more than transformers reads and writes of a model: rotations, layers that draft, digests go along."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jointquant.errors import require
from jointquant.files.digests import check_digest, digest_of_file
from jointquant.hub import fetch_beside
from jointquant.models.options import digests_named
from jointquant.models.source import INDEX_NAME
from jointquant.recipe.recipe import Recipe
from jointquant.rotations.bundle import ROTATIONS_NAME
from jointquant.runtime.artifact_digests import digests_of_shards, open_digests, write_digests
from jointquant.runtime.artifact_facts import QUANT_METHOD, is_artifact
from jointquant.runtime.kept_drafts import HeldDrafts
from jointquant.trust.folder import CONFIG_NAME
from jointquant.trust.strict_json import read_object


def rotations_file(folder: Path, recipe: Recipe) -> Path | None:
    """Where an artifact keeps its rotations; None where its recipe has none that are merged.

    Raises:
        InputError: it has some, and the file is missing.
    """
    kinds = {name: getattr(recipe.rotations, name).kind for name in ("r1", "r2")}
    merged = [f"{name.upper()} ({kind})" for name, kind in kinds.items() if kind != "none"]
    path = folder / ROTATIONS_NAME
    if merged:
        fetch_beside(folder, [ROTATIONS_NAME])
    require(
        not merged or path.is_file(),
        f"{path} is missing: the artifact's recipe merges {' and '.join(merged)}, expected the whole of the artifact",
    )
    return path if merged else None


def check_rotations(source: Path) -> None:
    """Refuse the rotations of an artifact that are not what was written.

    Args:
        source: an artifact, its file of rotations, or such a file by itself, which nothing vouches for.

    Raises:
        InputError: they are damaged, or the artifact has no digests.
    """
    folder = source if source.is_dir() else source.parent
    if is_artifact(folder) and (source.is_dir() or source.name == ROTATIONS_NAME):
        open_digests(folder, digests_named(None)).check_file(ROTATIONS_NAME)


class WholeArtifact:
    """Mixed into a family's model class: it loads and saves all that an artifact has, or is refused."""

    rotations_file: Path | None = None
    rotations_digest: str | None = None
    source_folder: Path | None = None
    source_digests: Mapping[str, str] | None = None

    @classmethod
    def from_pretrained(cls, name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As transformers' own. Raises InputError where that would quantize nothing, and make weights up."""
        loaded = super().from_pretrained(name_or_path, *args, **kwargs)  # type: ignore[misc]
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        settings = getattr(getattr(model, "hf_quantizer", None), "quantization_config", None)
        ours = getattr(settings, "quant_method", None) == QUANT_METHOD
        require(ours, f"{name_or_path} has no quantization_config of {QUANT_METHOD}: expected an artifact's")
        return loaded

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """As transformers' own, with the rotations, layers that draft, and digests of what is written.

        Raises:
            InputError: the rotations or drafts that the artifact was loaded with have gone or are not what they were,
                or ``push_to_hub``, which would upload before all is there.
        """
        file, target = self.rotations_file, Path(save_directory)
        gone = file is not None and not file.is_file()
        require(not gone, f"{file} has gone: an artifact cannot be saved without its rotations, expected it there")
        if file is not None and self.rotations_digest is not None:
            check_digest(ROTATIONS_NAME, file.parent, digest_of_file(file), self.rotations_digest)
        pushed = kwargs.get("push_to_hub", False)
        require(not pushed, "save_pretrained(push_to_hub=True) uploads half an artifact: expected push_to_hub(ID)")
        kwargs.setdefault("save_original_format", False)  # an artifact has the names of its modules
        drafts = self._held_drafts()
        super().save_pretrained(save_directory, *args, **kwargs)  # type: ignore[misc]
        if kwargs.get("is_main_process", True):
            drafts.save(target)
            if file is not None and not (
                (target / ROTATIONS_NAME).exists() and (target / ROTATIONS_NAME).samefile(file)
            ):
                shutil.copyfile(file, target / ROTATIONS_NAME)
            _vouch(target)

    def _held_drafts(self) -> HeldDrafts:
        """The layers that draft of the artifact that this was loaded from; read before it may be written over."""
        settings = getattr(self.config, "quantization_config", None)  # type: ignore[attr-defined]
        if self.source_folder is None or settings is None:
            return HeldDrafts({})
        return HeldDrafts.of(self.source_folder, settings.facts, self.source_digests)


def _vouch(folder: Path) -> None:
    """Write the digests of what ``save_pretrained`` saved; a tokenizer is saved by itself, and has none."""
    shards = [path for path in sorted(folder.glob("*.safetensors")) if path.name != ROTATIONS_NAME]
    tensors = dict(digests_of_shards(shards))
    files = [name for name in (INDEX_NAME, ROTATIONS_NAME) if (folder / name).is_file()]
    write_digests(folder, read_object(folder / CONFIG_NAME), tensors, files)
