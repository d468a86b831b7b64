"""Settings of the quantizers, the parts of a recipe that say which grid values go to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

if TYPE_CHECKING:  # settings are read without torch, which takes seconds to import
    import torch

    from jointquant.quantization.integer import IntFormat
    from jointquant.quantization.weights import WeightFormat

LATER = "later"
"""Marks a field that came after artifacts were made without it: ``recorded`` leaves it out at its default."""

NumBits = Annotated[int, Field(description="2 to 8, or 16 for off")]
NF4_GROUP_SIZE = 64
Ratio = Annotated[float, Field(gt=0, le=1)]


class Settings(BaseModel):
    """Base of all parts of a recipe: frozen, unknown keys refused, NaN and infinity too."""

    model_config = ConfigDict(frozen=True, extra="forbid", serialize_by_alias=True, allow_inf_nan=False)


SettingsType = TypeVar("SettingsType", bound=Settings)


def merged(settings: SettingsType, changes: dict[str, Any]) -> SettingsType:
    """``settings`` with some keys changed, checked again."""
    return type(settings).model_validate(settings.model_dump() | changes) if changes else settings


class QuantizerSettings(Settings):
    """What all quantizers share; ``num_bits: 16`` turns the quantizer off."""

    num_bits: NumBits = 16
    symmetric: bool = True
    group_size: int | None = Field(default=None, ge=1)

    @field_validator("num_bits")
    @classmethod
    def _known_width(cls, value: int) -> int:
        if value != 16 and not 2 <= value <= 8:
            raise ValueError("must be between 2 and 8, or 16 for off")
        return value

    @property
    def enabled(self) -> bool:
        """Whether anything is quantized."""
        return self.num_bits != 16


class IntegerSettings(QuantizerSettings):
    """A quantizer to an integer grid.

    ``symmetric_range`` of a symmetric one: all 2^b integers, max|x| / (2^b − 1) · 2 a step; or ``restricted`` to as
    many below zero as above, max|x| / (2^(b−1) − 1) a step, which is the arithmetic of vLLM's kernels.
    """

    # Left out of what is written where it is the default, so that recipes of earlier versions keep their digests.
    symmetric_range: Literal["full", "restricted"] = Field(default="full", exclude_if=lambda value: value == "full")

    @model_validator(mode="after")
    def _restricts_what_is_symmetric(self) -> IntegerSettings:
        if self.symmetric_range == "restricted" and not self.symmetric:
            raise ValueError("symmetric_range restricted has no meaning beside a zero point: expected symmetric true")
        return self

    @property
    def format(self) -> IntFormat | None:
        """The integer grid, or None when off."""
        from jointquant.quantization.integer import IntFormat

        if not self.enabled:
            return None
        return IntFormat(self.num_bits, self.symmetric, self.group_size, symmetric_range=self.symmetric_range)


class StoredSettings(QuantizerSettings):
    """Weights at rest. ``int``: ``group_size: null`` is one scale per row; ``nf4``: null is 64, num_bits 4 (or 16).

    ``signed_scale`` is about symmetric integers: what has a zero point or levels of its own does without.
    ``group_tail`` fit leaves the size of groups to the model: ``run.group_sizes.with_groups_that_fit`` puts it there.
    """

    type: Literal["int", "nf4"] = "int"
    signed_scale: bool = False
    group_tail: Literal["refuse", "pad", "fit"] = "refuse"
    clip: Literal["none", "mse", "shallow"] = "mse"
    scale_dtype: Literal["float16", "bfloat16", "float32"] | None = None
    symmetric_scale: Annotated[Literal["compressed-tensors", "quarot", "jointquant"], LATER] = "compressed-tensors"

    @model_validator(mode="after")
    def _a_symmetric_scale_where_there_is_one(self) -> StoredSettings:
        plain = self.type == "int" and self.symmetric and not self.signed_scale
        if self.symmetric_scale != "compressed-tensors" and not plain:
            raise ValueError(
                f"symmetric_scale {self.symmetric_scale} is for symmetric integers with scales of one sign: expected "
                "type int, symmetric true and signed_scale false"
            )
        return self

    @model_validator(mode="after")
    def _nf4_has_one_shape(self) -> StoredSettings:
        if self.type == "nf4" and self.num_bits not in (4, 16):
            raise ValueError(f"type nf4 has 4 bits, got num_bits {self.num_bits}")
        if self.type == "nf4" and not self.symmetric:
            raise ValueError("type nf4 has no zero point: expected symmetric true")
        return self

    @property
    def stored_group_size(self) -> int | None:
        """The group size, the default of the type included."""
        return NF4_GROUP_SIZE if self.type == "nf4" and self.group_size is None else self.group_size

    def scales(self, stored: torch.dtype) -> torch.dtype:
        """The dtype that scales are rounded to and stored in, in a model stored in ``stored``."""
        import torch

        dtypes = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
        return stored if self.scale_dtype is None else dtypes[self.scale_dtype]

    @property
    def format(self) -> WeightFormat | None:
        """The grid or the codebook, or None when off."""
        from jointquant.quantization.codebook import NF4, CodebookFormat
        from jointquant.quantization.integer import GroupTail, IntFormat

        if not self.enabled:
            return None
        tail: GroupTail = "pad" if self.group_tail == "pad" else "refuse"  # groups that are made to fit have none
        if self.type == "nf4":
            return CodebookFormat(NF4, self.stored_group_size, tail)
        signed = self.signed_scale and self.symmetric
        settings = self.num_bits, self.symmetric, self.group_size, signed, tail
        return IntFormat(*settings, symmetric_scale=self.symmetric_scale)


class EmbeddingSettings(StoredSettings):
    """The token embedding: its rows go to the nearest values, nothing is known of their errors' effect."""


class WeightSettings(StoredSettings):
    """Weights of the decoder's linears, or of the head."""

    method: Literal["rtn", "gptq"] = "gptq"
    activation_order: bool = True
    damping: float = Field(default=0.01, gt=0, le=1)
    groups: Annotated[Literal["static", "sequential"], LATER] = "static"

    @model_validator(mode="after")
    def _groups_in_their_order(self) -> WeightSettings:
        if self.groups == "sequential":
            if self.method != "gptq" or self.stored_group_size is None:
                raise ValueError("groups sequential is for GPTQ with groups: expected method gptq and a group_size")
            if self.activation_order:
                raise ValueError("groups sequential needs activation_order false: its groups stand side by side")
        return self

    @property
    def reads_inputs(self) -> bool:
        """Whether rounding asks what the linear reads."""
        return self.enabled and self.method == "gptq"


class ActivationSettings(IntegerSettings):
    """Inputs of the decoder's linears.

    ``token`` and ``group`` take the range of each token (and group) when it arrives; ``head`` is ``group`` with as many
    channels as a head has, which ``run.fitting.fitted`` puts there; ``tensor`` and ``channel`` have
    one range (one a channel) for all tokens, taken on the calibration set. ``clip_ratio`` is the part of the range
    that is kept; ``search`` finds it for each site on the calibration set. With ``centring: mean`` x − μ is quantized,
    μ the mean input on the calibration set, and W μ joins the bias.
    """

    symmetric: bool = False
    strategy: Literal["token", "group", "head", "tensor", "channel"] = "token"
    clip_ratio: Ratio | Literal["search"] = 1.0
    centring: Literal["none", "mean"] = "none"

    @model_validator(mode="after")
    def _groups_where_they_are_meant(self) -> ActivationSettings:
        if self.strategy == "group" and self.group_size is None:
            raise ValueError("strategy group needs a group_size, expected for example group_size: 128")
        if self.strategy in ("head", "tensor", "channel") and self.group_size is not None:
            raise ValueError(f"group_size has no meaning for strategy {self.strategy}: expected null")
        return self

    @property
    def format(self) -> IntFormat | None:
        """The integer grid, or None when off. Raises ValueError for strategy ``head``, which is not yet fitted."""
        if self.strategy == "head":
            raise ValueError("strategy head depends on the model: expected a recipe that is fitted to one")
        return super().format

    @property
    def calibrated(self) -> bool:
        """Whether anything has to be known of the inputs beforehand."""
        ranged = self.clip_ratio == "search" or self.strategy in ("tensor", "channel")
        return self.centring != "none" or (self.enabled and ranged)

    @property
    def fixed_ratio(self) -> float:
        """The clip ratio, where it is not searched: nothing is clipped before the search."""
        return 1.0 if self.clip_ratio == "search" else self.clip_ratio


class RangeSettings(IntegerSettings):
    """A quantizer of keys or values: one range per token and head (``group_size: null``) or part of a head."""

    symmetric: bool = False
    clip_ratio: Ratio = 1.0


class CacheSettings(RangeSettings):
    """Keys and values, both alike except for what ``keys`` and ``values`` name.

    ``centring`` takes the calibrated mean from keys (softmax does not see it) or values (it joins o_proj's bias);
    ``balancing`` gives queries and keys alike channels (diagonal) or covariances (full) by a change of basis.
    ``scheme`` says whose arithmetic it is: ``affine``, this package's own; or ``int4_per_token_head``, vLLM's.
    """

    centring: Literal["none", "keys", "values", "both"] = "none"
    balancing: Literal["none", "diagonal", "full"] = "none"
    keys: dict[str, Any] = Field(default_factory=dict)
    values: dict[str, Any] = Field(default_factory=dict)
    scheme: Annotated[Literal["affine", "int4_per_token_head"], LATER] = "affine"

    @model_validator(mode="after")
    def _vllms_cache_has_one_shape(self) -> CacheSettings:
        if self.scheme == "affine" or not self.enabled:
            return self
        plain = not self.symmetric and self.group_size is None and self.clip_ratio == 1
        alone = self.centring == "none" and self.balancing == "none" and not self.keys and not self.values
        if self.num_bits != 4 or not plain or not alone:
            raise ValueError(
                "scheme int4_per_token_head is vLLM's own and has no other settings: expected num_bits 4 (or 16), and "
                "symmetric, group_size, clip_ratio, centring, balancing, keys and values at their defaults"
            )
        return self

    @property
    def is_vllms(self) -> bool:
        """Whether keys and values are quantized as vLLM's own cache of 4 bits does it."""
        return self.enabled and self.scheme == "int4_per_token_head"

    @property
    def centres_keys(self) -> bool:
        """Whether the mean key is subtracted."""
        return self.centring in ("keys", "both")

    @property
    def centres_values(self) -> bool:
        """Whether the mean value is subtracted."""
        return self.centring in ("values", "both")

    @property
    def of_keys(self) -> RangeSettings:
        """The quantizer of the keys. Raises pydantic's ValidationError for an unknown key or a value out of range."""
        return self._with(self.keys)

    @property
    def of_values(self) -> RangeSettings:
        """The quantizer of the values. Raises as ``of_keys`` does."""
        return self._with(self.values)

    def _with(self, changes: dict[str, Any]) -> RangeSettings:
        shared = {name: getattr(self, name) for name in RangeSettings.model_fields}
        return RangeSettings.model_validate(shared | changes)


LARGEST_RATE, WAY = 0.02, 1.5
"""Of refinement's offsets: the rate of few steps; rate times steps of many, twice what all of them add up to."""


class RefinementSettings(Settings):
    """Layer by layer, learning which way weights are rounded; ``steps: 0``: off, they stay as ``method`` left them.

    There are ``steps`` of them, and more where it takes more to see each window ``rounds`` times. ``distance``: of a
    layer's output from the unquantized model's, squared as it is, or of each token in units of its own length.
    ``hold``: how far weights are drawn to their integers before (``LearnedRounding``).
    """

    steps: int = Field(default=0, ge=0)
    distance: Literal["squared", "relative"] = "squared"
    hold: Annotated[float, LATER] = Field(default=0.0, ge=0, le=1)
    rounds: int = Field(default=0, ge=0, le=1_000_000)
    batch_tokens: int = Field(default=512, ge=1)
    learning_rate: float | None = Field(default=None, gt=0)
    scale_learning_rate: float = Field(default=0.002, ge=0)
    clip_learning_rate: float = Field(default=0.006, ge=0)

    @property
    def enabled(self) -> bool:
        """Whether anything is learned."""
        return self.steps > 0

    def batch_windows(self, seqlen: int) -> int:
        """Windows of a step: whole ones, one at least."""
        return max(1, self.batch_tokens // seqlen)

    def num_steps(self, num_windows: int, seqlen: int) -> int:
        """Steps a layer on so many windows of ``seqlen`` tokens."""
        if not self.enabled:
            return 0
        return max(self.steps, self.rounds * (num_windows // min(num_windows, self.batch_windows(seqlen))))

    def rates(self, num_steps: int) -> tuple[float, float, float]:
        """Of offsets, scales and clip ratios, where there are so many steps."""
        rate = min(LARGEST_RATE, WAY / num_steps) if self.learning_rate is None else self.learning_rate
        return rate, self.scale_learning_rate, self.clip_learning_rate


class SmoothingSettings(Settings):
    """SmoothQuant: the share α of the activations' outliers that moves into the weights; null: off."""

    alpha: float | None = Field(default=None, ge=0, le=1)
    measure: Literal["max", "rms"] = "max"
