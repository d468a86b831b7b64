"""What an artifact says about itself: its configuration, its transforms in words, its card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import PreTrainedModel

from jointquant._version import __version__
from jointquant.artifact.card import write_card
from jointquant.files.durable import save_json
from jointquant.hub import Location
from jointquant.models.contents import modules_of
from jointquant.models.drafts import module_of
from jointquant.recipe.recipe import Recipe
from jointquant.rotations.bundle import Rotations
from jointquant.rotations.hadamard import HadamardTransform
from jointquant.run.job import Job
from jointquant.runtime.artifact_digests import files_to_vouch_for, write_digests
from jointquant.runtime.artifact_facts import DRAFTS, LEFT_ASIDE, TIED
from jointquant.runtime.generation_settings import generation_settings_of
from jointquant.runtime.integration import artifact_config
from jointquant.runtime.kept_drafts import counts_of, drafts_to_keep
from jointquant.runtime.key_basis import KeyBasis
from jointquant.runtime.loading import save_tokenizer
from jointquant.runtime.online import OnlineTransforms
from jointquant.runtime.tied_ends import stores_once
from jointquant.trust.folder import GENERATION_NAME, PROCESSOR_FILES
from jointquant.trust.strict_json import read_object


def describe_transforms(
    recipe: Recipe,
    rotations: Rotations,
    online: OnlineTransforms,
    dtype: torch.dtype,
    latents: tuple[int, ...] = (),
) -> dict[str, str]:
    """What R1 to R4 are, in words; a block-diagonal fallback and the cost of basis changes show here.

    Args:
        recipe: what was asked for.
        rotations: what was merged.
        online: what runs with the model.
        dtype: of the stored matrices.
        latents: the sizes of those that R1 has rotated with it.
    """
    words: dict[str, str] = {"r1": recipe.rotations.r1.kind, "r2": recipe.rotations.r2.kind}
    if rotations.r1:
        words["r1"] += f", {HadamardTransform.of_size(rotations.r1[0].shape[-1]).describe()}"
        if latents:
            words["r1"] += f"; latents by {', '.join(HadamardTransform.of_size(n).describe() for n in latents)}"
    if rotations.r2:
        words["r2"] += f", {HadamardTransform.of_size(rotations.r2[0].shape[-1]).describe()}"
    if rotations.scales:
        sites = ", ".join(sorted(rotations.scales[0]))
        words["smoothing"] = f"alpha {recipe.smoothing.alpha:g}, {recipe.smoothing.measure}, merged, at {sites}"
    words["r3"] = "none" if online.r3 is None else f"online, {online.r3.describe()}"
    if online.keys is not None:
        words |= describe_keys(recipe, online.keys)
    words["r4"] = f"online, {'; '.join(r4.describe() for r4 in online.r4.values())}" if online.r4 else "none"
    if online.inner is not None:
        words["r4"] += f", then {online.inner.describe()}, learned for each down projection"
    if online.basis is not None:
        words["basis_change"] = online.basis.describe(dtype)
    return words


def describe_keys(recipe: Recipe, keys: KeyBasis) -> dict[str, str]:
    """The basis of the keys in words."""
    cost = f"online, dense of order {keys.head_dim} per KV head, with R3" if keys.dense else "online"
    parts = [f"balancing {recipe.kv_cache.balancing}", *(["less the mean key"] if keys.centred else [])]
    words = {"keys": f"{cost}: {', '.join(parts)}"}
    return words | ({"r3": f"{recipe.rotations.r3.kind}, in the basis of the keys"} if keys.dense else {})


def write_metadata(job: Job, about: dict[str, object], digests: Mapping[str, str]) -> None:
    """Everything that an artifact holds besides its shards, their index and its rotations, which are there already.

    Args:
        job: whose artifact.
        about: what config.json is to say of it.
        digests: of its tensors, by name.
    """
    stream, folder = job.stream, job.artifact
    base = base_facts(stream.skeleton.config.name_or_path, job.subject.origin)
    facts = {**base, **about, "jointquant_version": __version__}
    if stores_once(stream, job.recipe):
        facts[TIED] = str(job.place.dtype).removeprefix("torch.")
    kept = drafts_to_keep(stream, job.recipe)
    if kept:
        facts[DRAFTS] = counts_of(kept)
    aside = [name for name in stream.left_aside if module_of(name, stream.architecture.layers) not in kept.modules]
    if aside:
        facts[LEFT_ASIDE] = modules_of(aside, stream.architecture)
    config = artifact_config(stream.skeleton.config, stream.architecture, job.recipe, stream.stored_dtype, facts)
    generation = generation_settings_of(job.subject.model)
    if generation is not None:
        save_json(folder / GENERATION_NAME, generation)
    save_tokenizer(job.subject.tokenizer, folder)
    if stream.architecture.wrapper is not None:
        copy_processor(job.subject.model, folder)
    write_digests(folder, config, digests, files_to_vouch_for(folder))
    write_card(folder, config["quantization_config"], "native")


def copy_processor(model: str | Path | PreTrainedModel, folder: Path) -> None:
    """Take the files along that say how images become numbers, where the model has a folder and they are in it."""
    if isinstance(model, PreTrainedModel):
        return
    for name in PROCESSOR_FILES:
        if (Path(model) / name).is_file():
            save_json(folder / name, read_object(Path(model) / name))


def base_facts(name_or_path: str, origin: Location | None) -> dict[str, str]:
    """Which model an artifact was made of: a hub id and its commit, or the name of a folder."""
    if origin is None:
        return {"base_model": Path(name_or_path).name if Path(name_or_path).exists() else name_or_path}
    return {"base_model": origin.name} | ({"base_revision": origin.revision} if origin.revision else {})
