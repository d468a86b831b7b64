"""Recipes: every setting of a run, frozen and checked; presets are the YAML files in ``recipes/``."""

from __future__ import annotations

import fnmatch
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from jointquant.errors import InputError, SeveralFaultsError, unknown
from jointquant.recipe.catalogue import PRESETS, preset_names
from jointquant.recipe.faults import faults
from jointquant.recipe.keys import keys_of
from jointquant.recipe.rotations import LearnedResidualRotation, RotationSettings
from jointquant.recipe.settings import (
    ActivationSettings,
    CacheSettings,
    EmbeddingSettings,
    RefinementSettings,
    Settings,
    SettingsType,
    SmoothingSettings,
    WeightSettings,
    merged,
)
from jointquant.recipe.sizes import apply_size
from jointquant.trust.strict_yaml import parse_yaml, read_yaml

MAX_CHANGE = 4096
"""Characters of one ``key=value``."""


class CalibrationSettings(Settings):
    """Which text calibrates, how much of it, and the seed of every random choice of the run.

    ``seqlen``: null is 2048, or what the model reads where that is less; ``run.fitting.fitted`` puts the number there.
    ``activations``: while weights are rounded, inputs and cache are ``quantized`` as they will be, or ``exact``.
    """

    source: str = "wikitext2"
    num_samples: int = Field(default=128, ge=1, le=1_000_000_000)
    seqlen: int | None = Field(default=None, ge=2, le=1_000_000_000)
    rotation_samples: int | None = Field(default=None, ge=1)
    activations: Literal["quantized", "exact"] = "quantized"
    seed: int = Field(default=0, ge=0, lt=1 << 63)

    @property
    def window(self) -> int:
        """Tokens of a window, of a recipe that is fitted to a model."""
        assert self.seqlen is not None
        return self.seqlen

    @property
    def walked(self) -> int:
        """Windows of pass 1, which learns rotations and smoothing: the first of all."""
        return min(self.num_samples, self.rotation_samples or self.num_samples)


class Override(Settings):
    """Other settings for the linears whose name matches ``modules`` (a shell pattern, e.g. ``*.0.mlp.*``)."""

    modules: str
    weights: dict[str, Any] = Field(default_factory=dict)
    activations: dict[str, Any] = Field(default_factory=dict)

    def matches(self, module: str) -> bool:
        """Whether the linear of this full name is meant."""
        return fnmatch.fnmatchcase(module, self.modules)


class Recipe(Settings):
    """Everything a run depends on besides the model and the text."""

    description: str = ""
    rotations: RotationSettings = RotationSettings()
    smoothing: SmoothingSettings = SmoothingSettings()
    weights: WeightSettings = WeightSettings()
    refinement: RefinementSettings = RefinementSettings()
    head: WeightSettings = WeightSettings()
    embeddings: EmbeddingSettings = EmbeddingSettings()
    activations: ActivationSettings = ActivationSettings()
    kv_cache: CacheSettings = CacheSettings()
    calibration: CalibrationSettings = CalibrationSettings()
    overrides: tuple[Override, ...] = ()

    def model_post_init(self, _: Any) -> None:
        """Check each override now, not when its module is met; keys and values likewise."""
        for override in self.overrides:
            merged(self.weights, override.weights)
            merged(self.activations, override.activations)
        _ = self.kv_cache.of_keys, self.kv_cache.of_values

    @model_validator(mode="after")
    def _refined_weights_are_integers(self) -> Recipe:
        every = (self.weights, *(merged(self.weights, override.weights) for override in self.overrides))
        if self.refinement.enabled and any(w.enabled and w.type != "int" for w in every):
            raise ValueError("refinement.steps above 0 learns integers: expected weights.type int")
        return self

    @model_validator(mode="after")
    def _measures_have_a_quantizer(self) -> Recipe:
        """What is measured through the activation quantizer needs one, with a range that each token brings along."""
        if self._learns_error("r3") and not self.kv_cache.of_keys.enabled:
            raise ValueError("rotations.r3.objective quant_error needs keys of less than 16 bits in kv_cache")
        erring = [name for name in ("r1", "r2", "r4") if self._learns_error(name)]
        measures = [f"rotations.{name}.objective quant_error" for name in erring]
        if isinstance(self.rotations.r1, LearnedResidualRotation) and self.rotations.r1.weights == "sensitivity":
            measures.append("rotations.r1.weights sensitivity")
        for measure in measures:
            if not self.activations.enabled:
                raise ValueError(f"{measure} needs activations.num_bits below 16")
            for settings in (self.activations, *(merged(self.activations, o.activations) for o in self.overrides)):
                if not settings.enabled and "r4" in erring:
                    raise ValueError("rotations.r4.objective quant_error needs inputs below 16 bits in overrides too")
                if settings.strategy in ("tensor", "channel"):
                    raise ValueError(f"{measure} needs activations.strategy token or group")
                if settings.clip_ratio == "search":
                    raise ValueError(f"{measure} needs a number as activations.clip_ratio")
        return self

    @model_validator(mode="after")
    def _reconstructs_what_is_rounded(self) -> Recipe:
        rounds = self.weights.enabled or self.activations.enabled or self.overrides
        if getattr(self.rotations.r4, "objective", None) == "reconstruction" and not rounds:
            raise ValueError(
                "rotations.r4.objective reconstruction needs weights.num_bits or activations.num_bits below 16"
            )
        return self

    def _learns_error(self, name: str) -> bool:
        return getattr(getattr(self.rotations, name), "objective", None) == "quant_error"

    @property
    def merges_gains(self) -> bool:
        """Whether norms lose their gains to the weights behind them: R1 passes them only then, and nothing else asks.

        Where they keep them, norms and what reads them are the model's own. Smoothing divides a norm's gain as it is.
        """
        return self.rotations.r1.kind != "none"

    @property
    def walk(self) -> tuple[CalibrationSettings, bool]:
        """What pass 1 is like: recipes that have it in common share one walk through the unquantized model."""
        return self.calibration, self.merges_gains

    def weights_of(self, module: str) -> WeightSettings:
        """Weight settings of the linear ``module`` (full name); later overrides win."""
        return self._overridden(self.weights, "weights", module)

    def activations_of(self, module: str) -> ActivationSettings:
        """Activation settings of the input of the linear ``module``; later overrides win."""
        return self._overridden(self.activations, "activations", module)

    def _overridden(self, settings: SettingsType, part: str, module: str) -> SettingsType:
        for override in self.overrides:
            if override.matches(module):
                settings = merged(settings, getattr(override, part))
        return settings


def load_recipe(
    source: str | Path | Recipe = "w4a4kv4", changes: Iterable[str] = (), size: str | None = None
) -> Recipe:
    """A recipe by preset name, by YAML file, or as it is; a ``size``, and each ``dotted.key=value`` of ``changes``.

    A size sets how much a rotation is trained only where one is learned, once the changes are made; they still win.

    Raises:
        InputError: an unknown preset or size, a file that is no recipe, an unknown key, a value out of range.
    """
    data = source.model_dump(mode="json") if isinstance(source, Recipe) else _read_yaml(source)
    changes = list(changes)
    lines = _apply_all(data, changes)
    if size is not None:
        apply_size(data, size)
        _apply_all(data, changes)
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        label = "given" if isinstance(source, Recipe) else source
        keys = [key.name for key in keys_of(Recipe)]
        lines += [f"recipe {label}: {fault}" for fault in faults(error, keys)]
    if lines:
        raise SeveralFaultsError(lines)
    return recipe


def calibration_changes(
    source: str | Path | None = None, num_samples: int | None = None, seqlen: int | None = None, seed: int | None = None
) -> list[str]:
    """What was given of a run's calibration, as changes of its recipe; None: the recipe says it."""
    given = {
        "source": None if source is None else str(source),
        "num_samples": num_samples,
        "seqlen": seqlen,
        "seed": seed,
    }
    return [f"calibration.{key}={json.dumps(value)}" for key, value in given.items() if value is not None]


def _read_yaml(source: str | Path) -> dict[str, Any]:
    path = PRESETS / f"{source}.yaml"
    if str(source) not in preset_names():
        path = Path(source)
        if path.suffix not in (".yaml", ".yml") or not os.path.exists(path):
            known = preset_names()
            expected = f"one of {', '.join(known)}, or an existing .yaml file"
            raise InputError(unknown("recipe", str(source), known, expected))
    data = read_yaml(path, f"recipe {source}")
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise InputError(f"recipe {source}: expected a mapping of settings, got {type(data).__name__}")
    return data


def _apply_all(data: dict[str, Any], changes: Iterable[str]) -> list[str]:
    """Make all changes; returns what is wrong with those that cannot be made."""
    lines = []
    for change in changes:
        try:
            _apply(data, change)
        except InputError as error:
            lines.append(str(error))
    return lines


def _apply(data: dict[str, Any], change: str) -> None:
    """Set one ``a.b.c=value`` (the value in YAML); setting a ``kind`` drops the settings of the former kind."""
    if len(change) > MAX_CHANGE:
        raise InputError(f"`changes` {change[:60]!r}…: {len(change)} characters, expected at most {MAX_CHANGE}")
    key, equals, text = change.partition("=")
    if not equals or not key:
        raise InputError(f"`changes` {change!r}: expected key=value, for example weights.num_bits=8")
    value = parse_yaml(text, f"`changes` {change[:100]!r}")
    *parents, last = key.split(".")
    node = data
    for part in parents:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise InputError(f"`changes` {change!r}: {part} holds a single value, it has no key {last!r}")
    if last == "kind" and node.get("kind") != value:
        node.clear()
    node[last] = value
