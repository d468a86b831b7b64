"""What an artifact's config.json says of it, as typed values: the one place where such words are read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from jointquant.errors import InputError, require
from jointquant.models.registry import ARTIFACT_PREFIX
from jointquant.recipe.faults import describe
from jointquant.recipe.recipe import Recipe
from jointquant.recipe.recorded import recorded
from jointquant.trust.folder import CONFIG_NAME
from jointquant.trust.strict_json import read_object

Words = Annotated[str, Field(max_length=1 << 12)]
Count = Annotated[int, Field(ge=0, le=1 << 50)]


EARLIER = "it was written by an earlier version of jointquant, quantize again or install that version"
"""About an artifact that lacks what this version writes."""


QUANT_METHOD = "jointquant"
FORMAT_VERSION, TIED_VERSION, DRAFTS_VERSION = 1, 2, 3
"""Of artifacts that hold embedding and head, that hold the matrix of both once, and that hold layers that draft."""
TIED = "tied_head"
"""Key of the dtype that the head was computed in where one matrix is held for both ends."""
LEFT_ASIDE = "left_aside"
"""Key of what the base model's checkpoint holds besides, where it does."""
TUNED = "tuned"
"""Key of what ``tune`` has done to it, where it has."""
DRAFTS = "drafts"
"""Key of the layers that draft which the artifact holds, each with the number of its tensors, where it does."""


class KeptFact(BaseModel):
    """Parameters that stay in high precision, see ``artifact.inventory.Kept``."""

    model_config = ConfigDict(strict=True, frozen=True)

    name: Words
    parameters: Count
    why: Words


class StarvedFact(BaseModel):
    """An expert that too few tokens reached, see ``artifact.inventory.Starved``."""

    model_config = ConfigDict(strict=True, frozen=True)

    layer: Count
    expert: Count
    tokens: Count


class TunedFact(BaseModel):
    """A training of what an artifact stores, see ``tuning.tune``.

    Attributes:
        text: what it was trained on.
        windows: how many of it.
        seqlen: tokens of a window.
        epochs: how often each was seen.
        rates: by part that was trained.
        kl_before: the divergence from the base model on windows that were not trained on, in nats.
        kl_after: the same afterwards.
    """

    model_config = ConfigDict(strict=True, frozen=True)

    text: Words
    windows: Count
    seqlen: Count
    epochs: Count
    rates: Annotated[dict[Words, float], Field(max_length=16)]
    kl_before: float
    kl_after: float


class ArtifactFacts(BaseModel):
    """What stands in ``quantization_config`` besides the recipe and the family.

    Attributes:
        left_aside: what the base model's checkpoint holds and the artifact does not, such as layers that draft.
        drafts: the layers that draft which it holds, see ``kept_drafts``, each with the number of its tensors.
        tuned: the trainings of what it stores, in their order.
        base_model: a hub id, or the name of a folder.
        base_revision: the commit of a hub id.
        transforms: R1 to R4 and what else is online, in words.
        tier: where it loads.
        runtimes: who can run it, in words.
        quantized_weights: how many.
        kept: what is not quantized.
        starved_experts: which saw too few tokens.
        jointquant_version: what wrote it.
        recipe_digest: of the recipe that it was made by: much of that has no tensor that would contradict it.
        digests: of digests.json, see ``artifact_digests``; exports have none.
        tied_head: the dtype that embedding and head are made in, see ``tied_ends``; None where both are stored.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="allow")

    transforms: Annotated[dict[Words, Words], Field(max_length=64)]
    tier: Annotated[int, Field(ge=1, le=3)]
    runtimes: Annotated[list[Words], Field(max_length=64)]
    quantized_weights: Count
    kept: Annotated[list[KeptFact], Field(max_length=1 << 16)]
    starved_experts: Annotated[list[StarvedFact], Field(max_length=1 << 17)]
    jointquant_version: Words
    recipe_digest: Words
    digests: Words | None = None
    tied_head: Words | None = None
    left_aside: Annotated[list[Words], Field(max_length=1 << 12)] = []
    drafts: Annotated[dict[Words, Count], Field(max_length=64)] = {}
    tuned: Annotated[list[TunedFact], Field(max_length=64)] = []
    base_model: Words | None = None
    base_revision: Words | None = None


def is_artifact(folder: Path) -> bool:
    """Whether a folder holds an artifact of ours."""
    try:
        data = read_object(folder / CONFIG_NAME)
    except InputError:
        return False
    return str(data.get("model_type", "")).startswith(ARTIFACT_PREFIX)


def our_quantization(quantization: Any, path: Path) -> dict[str, Any]:
    """The ``quantization_config`` of an artifact that this version reads, as plain data.

    Raises:
        InputError: another method's, or of another format version; names ``path``, the config.json.
    """
    ours = isinstance(quantization, dict) and quantization.get("quant_method") == QUANT_METHOD
    require(ours, f"{path} has no quantization_config of {QUANT_METHOD}: expected an artifact's")
    assert isinstance(quantization, dict)
    check_version(quantization.get("format_version", FORMAT_VERSION))
    return quantization


def check_version(version: object) -> None:
    """Raises InputError for an artifact of another format than this version reads."""
    require(
        version in (FORMAT_VERSION, TIED_VERSION, DRAFTS_VERSION),
        f"artifact of format version {version}: this version of jointquant reads {FORMAT_VERSION} to {DRAFTS_VERSION}",
    )


def version_of(facts: Mapping[str, Any]) -> int:
    """The format version of an artifact, by its facts: the least that a reader of it has to know."""
    if facts.get(DRAFTS):
        return DRAFTS_VERSION
    return TIED_VERSION if facts.get(TIED) else FORMAT_VERSION


def check_facts(facts: dict[str, Any], what: str) -> ArtifactFacts:
    """The facts of an artifact, typed. Raises InputError, naming ``what`` and the key, for what is none."""
    try:
        return ArtifactFacts.model_validate(facts)
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "missing":
            key = ".".join(map(str, first["loc"]))
            raise InputError(f"{what} does not say its {key} in its quantization_config: {EARLIER}") from None
        raise InputError(f"{what} is no artifact's: {describe(error)} in its quantization_config") from None


def digest_of(recipe: Recipe) -> str:
    """A fingerprint of all settings of a recipe; one that came later counts where it is not at its default."""
    text = json.dumps(recorded(recipe), sort_keys=True)
    return hashlib.blake2b(text.encode("utf-8"), digest_size=16).hexdigest()


def check_recipe(recipe: Recipe, facts: dict[str, Any]) -> None:
    """Refuse an artifact whose recipe was changed: a cache of other bits, or inputs of other ranges, has no tensors.

    Raises:
        InputError: the recipe is not the one whose digest stands beside it.
    """
    cache = recipe.kv_cache
    bits = f"its KV cache is said to have {cache.of_keys.num_bits} bits for keys, {cache.of_values.num_bits} for values"
    require(
        facts.get("recipe_digest") == digest_of(recipe),
        f"the recipe in the artifact's config.json is not the one that it was made by: {bits}, and recipe_digest says "
        "that something was changed, expected the artifact as it was written",
    )
