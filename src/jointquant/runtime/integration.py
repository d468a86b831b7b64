"""The place in transformers: a model type and a quantizer of our own.

An artifact's ``model_type`` is ``jointquant_<family>``. transformers refuses a type it does not know, so an artifact
never loads without this package; with it, the type resolves to the family's own classes, and the quantizer puts the
runtime's modules in before the weights are loaded.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.quantizers import HfQuantizer, register_quantizer
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING
from transformers.utils.quantization_config import QuantizationConfigMixin

from jointquant.errors import InputError, require
from jointquant.models.architecture import Architecture
from jointquant.models.configuration import model_class_of, opener_of
from jointquant.models.experts import take_apart
from jointquant.models.options import DigestMode, digests_named
from jointquant.models.registry import ARCHITECTURES, architecture_of, artifact_type
from jointquant.models.source import DTYPES, INTEGERS, Checkpoint
from jointquant.recipe.faults import describe
from jointquant.recipe.recipe import Recipe, load_recipe
from jointquant.recipe.recorded import recorded
from jointquant.rotations.bundle import ROTATIONS_NAME, Rotations
from jointquant.runtime.artifact_digests import (
    ArtifactDigests,
    handed,
    open_digests,
)
from jointquant.runtime.artifact_facts import (
    DRAFTS,
    EARLIER,
    FORMAT_VERSION,
    QUANT_METHOD,
    TIED,
    check_facts,
    check_recipe,
    check_version,
    digest_of,
    our_quantization,
    version_of,
)
from jointquant.runtime.assembly import Assembly
from jointquant.runtime.attention import ATTENTION_NAME
from jointquant.runtime.cache import PackedGeneration
from jointquant.runtime.kept_drafts import check_drafts
from jointquant.runtime.tied_ends import NORM_WEIGHT, SHARED_WEIGHT, TiedEnds
from jointquant.runtime.token_layers import take_tokens_in_steps
from jointquant.runtime.whole_artifact import WholeArtifact, rotations_file
from jointquant.trust.folder import CONFIG_NAME
from jointquant.trust.safetensors_header import HeaderEntry, read_header
from jointquant.trust.strict_json import read_object

STORED = tuple(str(dtype).removeprefix("torch.") for dtype in DTYPES.values())
"""The dtypes that an artifact's other tensors may have."""
INPUTS_KEPT = ("input_scale", "input_clip_ratio", "input_mean")
KEYS_KEPT = ("key_mean", "key_basis", "query_basis")
KEPT_DTYPES = ("weight_scale", *INPUTS_KEPT, *KEYS_KEPT, SHARED_WEIGHT, NORM_WEIGHT)


class JointQuantConfig(QuantizationConfigMixin):
    """The ``quantization_config`` of an artifact: names everything that was done to the model."""

    def __init__(
        self,
        recipe: dict[str, Any],
        architecture: str,
        format_version: int = FORMAT_VERSION,
        quant_method: str = QUANT_METHOD,
        **facts: Any,
    ) -> None:
        check_version(format_version)
        self.quant_method = quant_method
        self.format_version = format_version
        self.architecture = architecture
        self.recipe = recipe
        self.facts = facts

    def to_dict(self) -> dict[str, Any]:
        """As it stands in config.json."""
        fields = {key: value for key, value in vars(self).items() if key != "facts"}
        return fields | self.facts

    def tied_ends(self) -> TiedEnds | None:
        """How the two ends are made, where one matrix is stored for both. Raises InputError for facts that are none."""
        return TiedEnds.of(self.architecture, self.parsed_recipe(), self.facts)

    def hold_both_ends(self) -> None:
        """From now on it describes a model that has both its ends."""
        self.facts.pop(TIED, None)
        self.format_version = version_of(self.facts)

    def parsed_recipe(self) -> Recipe:
        """The recipe, checked. Raises InputError when it is none."""
        try:
            return load_recipe(Recipe.model_validate(self.recipe))
        except ValidationError as error:
            raise InputError(f"recipe of the artifact: {describe(error)}") from None


AUTO_QUANTIZATION_CONFIG_MAPPING[QUANT_METHOD] = JointQuantConfig  # where runtime.registration has put a stand-in


@register_quantizer(QUANT_METHOD)
class JointQuantHfQuantizer(HfQuantizer):
    """Builds the runtime's modules while transformers loads an artifact."""

    requires_calibration = True
    quantization_config: JointQuantConfig
    _checking: Future[None] | None = None
    _tied: TiedEnds | None = None

    def update_attn_implementation(self, config: PretrainedConfig) -> PretrainedConfig:
        """Attention goes through our registered function; another explicit choice is refused."""
        asked = config._attn_implementation
        require(
            asked in (None, "sdpa", ATTENTION_NAME),
            f"attn_implementation {asked!r} knows no quantized cache: expected {ATTENTION_NAME!r} (the default)",
        )
        config._attn_implementation = ATTENTION_NAME
        return config

    def get_new_dtype(self, converter: Any, param: Any, dtype: torch.dtype | None) -> torch.dtype | None:
        """Scales, clip ratios, means and bases keep the dtype they were stored in, whatever the model computes in."""
        target = next(iter(getattr(converter, "target_patterns", [])), "")
        return None if str(target).endswith(KEPT_DTYPES) else super().get_new_dtype(converter, param, dtype)

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        files = kwargs.get("checkpoint_files")
        if not files:
            assembly_of(model, self.quantization_config).install_model(model)
            return
        folder = Path(files[0]).parent
        digests = handed() or open_digests(folder, digests_named(None))
        assembly_of(model, self.quantization_config).install_model(model)
        self._tied = self.quantization_config.tied_ends()
        if self._tied is not None:
            self._tied.install(model)
        check_complete(model.state_dict(), files, self.quantization_config.facts)
        recipe = self.quantization_config.parsed_recipe()
        check_recipe(recipe, self.quantization_config.facts)
        model.rotations_file = rotations_file(folder, recipe)
        model.rotations_digest = digests.file(ROTATIONS_NAME)
        model.source_folder, model.source_digests = folder, digests.tensors
        if self._tied is not None and model.rotations_file is not None:
            digests.check_file(ROTATIONS_NAME)
        self._checking = digests.check_behind(map(Path, files))

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        checking, self._checking = self._checking, None
        if checking is not None:
            checking.result()
        if self._tied is not None:
            self._tied.settle(model, rotations_in(model.rotations_file))
            self.quantization_config.hold_both_ends()
        take_tokens_in_steps(model)

    def is_serializable(self) -> bool:
        """A loaded artifact can be saved again."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Integers cannot be trained."""
        return False


def rotations_in(file: Path | None) -> Rotations:
    """Those of a file, or none. Raises InputError for a file of something else."""
    return Rotations() if file is None else Rotations.load(file)


def check_complete(want: Mapping[str, Tensor], files: list[str], facts: Mapping[str, Any]) -> None:
    """transformers initialises what an artifact lacks or has in another shape at random; here it is refused.

    Args:
        want: tensors of the shapes and kinds that the artifact's model is to have, by name, without values.
        files: the artifact's shards.
        facts: what it says of itself, among that which layers that draft it holds besides.

    Raises:
        InputError: a tensor that is missing, too many, or of another shape or kind.
    """
    have: dict[str, HeaderEntry] = {}
    for file in files:
        have |= read_header(Path(file))
    for name, tensor in want.items():
        require(name in have, f"the artifact lacks tensor {name}: it is incomplete")
        found, shape = have[name], tuple(tensor.shape)
        require(
            found.shape == shape and found.dtype in _stored_as(tensor.dtype),
            f"tensor {name} of the artifact is {found.dtype} {list(found.shape)}: its recipe makes it "
            f"{str(tensor.dtype).removeprefix('torch.')} {list(shape)}",
        )
    extra = [name for name in have if name not in want]
    for name in extra:
        merged = name.endswith(f".{NORM_WEIGHT}")
        require(not merged, f"the artifact has {name}, of a norm that by its recipe keeps its gain: {EARLIER}")
    check_drafts(extra, want, facts.get(DRAFTS) or {})


def _stored_as(dtype: torch.dtype) -> Container[str]:
    """The dtypes that a tensor may have in a file: integers their own, numbers any of the floats that models are of."""
    return DTYPES if dtype.is_floating_point else [name for name, stored in INTEGERS.items() if stored == dtype]


def check_artifact(folder: Path, config: PretrainedConfig, mode: DigestMode) -> ArtifactDigests:
    """Refuse an artifact that is none, before transformers builds it.

    Returns:
        Its digests: those of its small files were checked, those of its tensors are there to be.

    Raises:
        InputError: a configuration without a whole recipe of ours, files that are not what was written, or tensors or
            rotations that are no safetensors.
    """
    quantization = our_quantization(getattr(config, "quantization_config", None), folder / CONFIG_NAME)
    digests = open_digests(folder, mode)
    for key in ("recipe", "architecture"):
        require(key in quantization, f"{folder / CONFIG_NAME} has no {key} in its quantization_config")
    parsed = JointQuantConfig(**quantization)
    family = artifact_type(str(parsed.architecture))
    known = family == config.model_type and parsed.architecture in ARCHITECTURES
    require(known, f"an artifact of architecture {str(parsed.architecture)[:60]!r} has model_type {config.model_type}")
    check_facts(parsed.facts, str(folder / CONFIG_NAME))
    parsed.tied_ends()
    rotations_file(folder, parsed.parsed_recipe())
    stored = read_object(folder / CONFIG_NAME).get("dtype")
    known = isinstance(stored, str) and stored in STORED
    require(known, f"{folder / CONFIG_NAME} has dtype {str(stored)[:40]!r}: expected one of {', '.join(STORED)}")
    Checkpoint(folder)
    if (folder / ROTATIONS_NAME).exists():
        read_header(folder / ROTATIONS_NAME)
    return digests


def assembly_of(model: PreTrainedModel, quantization: JointQuantConfig) -> Assembly:
    """How an artifact's layers are built, at the sizes of ``model``, whose modules are still transformers' own.

    Its experts are taken apart, in place: an artifact has tensors for each of their linears.
    """
    architecture = architecture_of(quantization.architecture)
    take_apart(model, architecture)
    return Assembly.of(model, architecture, quantization.parsed_recipe())


def artifact_config(
    config: PretrainedConfig, architecture: Architecture, recipe: Recipe, dtype: torch.dtype, facts: dict[str, Any]
) -> dict[str, Any]:
    """config.json of an artifact: the base configuration under our model type, with everything named.

    Args:
        config: the base model's configuration.
        architecture: its family.
        recipe: the full recipe.
        dtype: the dtype of the tensors that are not integers.
        facts: what else is worth knowing (base model, transforms, versions).
    """
    facts = facts | {"recipe_digest": digest_of(recipe)}
    quantization = JointQuantConfig(recorded(recipe), architecture.model_type, version_of(facts), **facts)
    data: dict[str, Any] = config.to_dict()
    data |= {
        "model_type": artifact_type(architecture.model_type),
        "architectures": [artifact_class(architecture.model_type)],
        "tie_word_embeddings": False,
        "dtype": str(dtype).removeprefix("torch."),
        "quantization_config": quantization.to_dict(),
    }
    if architecture.wrapper is not None:  # transformers looks there, too
        data["text_config"] = data["text_config"] | {"tie_word_embeddings": False}
    for key in ("_name_or_path", "auto_map"):  # auto_map names code beside the base model, which stays there
        data.pop(key, None)
    return data


_CLASSES: dict[str, tuple[type[PretrainedConfig], type[PreTrainedModel]]] = {}


def artifact_class(model_type: str) -> str:
    """The name of the class of a family's artifacts, as config.json has it in ``architectures``."""
    return _CLASSES[model_type][1].__name__


def _register_families() -> None:
    """Register ``jointquant_<family>`` with transformers' auto classes, for every supported family."""
    for model_type in ARCHITECTURES:
        described = {"__module__": __name__, "__doc__": f"{model_type}, quantized."}
        base_config = CONFIG_MAPPING[model_type]
        base_model = model_class_of(model_type)
        name = f"JointQuant{base_model.__name__}"
        config_class = type(
            f"JointQuant{base_config.__name__}",
            (base_config,),
            described | {"model_type": artifact_type(model_type)},
        )
        model_class = type(
            name,
            (WholeArtifact, PackedGeneration, base_model),
            described | {"config_class": config_class},
        )
        AutoConfig.register(artifact_type(model_type), config_class)
        for opener in {AutoModelForCausalLM, opener_of(model_type)}:
            opener.register(config_class, model_class)
        _CLASSES[model_type] = (config_class, model_class)
        for made in (config_class, model_class):  # where pickles look for them
            globals()[made.__name__] = made


_register_families()
