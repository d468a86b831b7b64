"""Settings of the rotations: what R1 to R4 are, and how those that are learned are trained."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from jointquant.recipe.settings import LATER, Settings
from jointquant.rotations.names import (
    FEWEST_TOKENS,
    PER_LAYER,
    InitName,
    ObjectiveName,
    OptimizerName,
    StrategyName,
    WeightingName,
)

BlockSize = Annotated[int, Field(ge=2)] | Literal["power_of_two"] | None


class FromFile(Settings):
    """A rotation that may be taken from a file, whatever else would make it; null: from ``rotations.from``, if any."""

    source: str | None = Field(default=None, alias="from")


class NoRotation(Settings):
    """No rotation at this place."""

    kind: Literal["none"] = "none"


class HadamardRotation(Settings):
    """A Hadamard matrix: with random signs where it is merged (R1, R2), plain where it is online (R3, R4)."""

    kind: Literal["hadamard"] = "hadamard"


class MergedHadamardRotation(HadamardRotation, FromFile):
    """A Hadamard matrix with random signs, R1 or R2."""


class BlockHadamardRotation(HadamardRotation):
    """A plain Hadamard matrix, or one of order ``block_size`` repeated along the diagonal; null: as large as there is.

    ``power_of_two``: as large as there is among the orders 2^n, which are the ones that other runtimes apply.
    """

    block_size: BlockSize = None


def check_tokens(objective: ObjectiveName, tokens: int) -> None:
    """Raises ValueError for an objective that takes more tokens than there are."""
    fewest = FEWEST_TOKENS.get(objective, 1)
    if tokens < fewest:
        raise ValueError(f"objective {objective} needs num_tokens and batch_tokens of at least {fewest}")


class LearnedRotation(Settings):
    """A rotation trained on a sample of the activations at its sites."""

    kind: Literal["learned"] = "learned"
    objective: ObjectiveName = "whip"
    optimizer: OptimizerName = "qr"
    init: InitName = "hadamard"
    num_tokens: int = Field(
        default=32768, ge=1, le=1_000_000_000, description="sampled tokens, over all layers and sites"
    )
    steps: int = Field(default=200, ge=1, le=1_000_000)
    batch_tokens: int = Field(default=4096, ge=1, le=1_000_000_000)
    learning_rate: float = Field(default=0.3, gt=0, description="in units of Whip, so that it suits all objectives")
    momentum: float = Field(default=0.9, ge=0, lt=1)
    tolerance: float = Field(default=0.0, ge=0, lt=1, description="end when the loss falls by less than this part")
    gradient_clip: float | None = Field(default=None, gt=0)
    accumulation: Annotated[int, LATER] = Field(default=1, ge=1, le=1_000_000)
    first_share: Annotated[float, LATER] = Field(default=1.0, gt=0, le=1)

    @model_validator(mode="after")
    def _enough_tokens(self) -> LearnedRotation:
        check_tokens(self.objective, min(self.num_tokens, self.batch_tokens))
        return self

    @model_validator(mode="after")
    def _clips_a_gradient_whose_length_counts(self) -> LearnedRotation:
        if self.gradient_clip is not None and self.optimizer == "newton_schulz":
            raise ValueError(
                "gradient_clip has no meaning for newton_schulz, which takes directions alone: expected null"
            )
        return self


class Epochs(Settings):
    """How long and in which batches, as DartQuant's scripts say it; ``recipe.epochs`` makes steps and tokens of it.

    ``epochs``: rounds through the sampled tokens, in place of ``steps``. ``batch_size``: windows of a batch, each with
    its sampled tokens at one site of one layer, in place of ``batch_tokens``.
    """

    epochs: Annotated[int | None, LATER] = Field(default=None, ge=1, le=1_000_000)
    batch_size: Annotated[int | None, LATER] = Field(default=None, ge=1, le=1_000_000_000)


class LearnedValueRotation(LearnedRotation, Epochs, FromFile):
    """R2, for each KV head of each layer."""


class LearnedResidualRotation(LearnedRotation, Epochs, FromFile):
    """R1 also chooses how the layers share it, and for ``joint`` what each layer counts (null: normalised)."""

    strategy: StrategyName = "pooled"
    weights: WeightingName | None = None

    @model_validator(mode="after")
    def _weights_only_where_they_count(self) -> LearnedResidualRotation:
        if self.weights is not None and self.strategy != "joint":
            raise ValueError(f"weights {self.weights} has no meaning for strategy {self.strategy}: expected joint")
        return self

    @property
    def weighting(self) -> WeightingName:
        """What a layer counts in a joint loss."""
        return self.weights or "normalised"

    @property
    def per_layer(self) -> bool:
        """Whether every layer gets an R1 of its own."""
        return self.strategy in PER_LAYER


class LearnedInnerRotation(LearnedRotation):
    """R4 that is learned behind a plain Hadamard matrix: a rotation for each block of at most ``most`` channels.

    ``block_size`` is that of the Hadamard matrix, as where it is not learned.
    """

    block_size: BlockSize = None
    most: int = Field(default=64, ge=2, le=1024)
    objective: ObjectiveName = "range"
    optimizer: OptimizerName = "newton_schulz"
    init: Literal["identity"] = "identity"
    num_tokens: int = Field(default=16384, ge=1, le=1_000_000_000)
    batch_tokens: int = Field(default=1024, ge=1, le=1_000_000_000)
    steps: int = Field(default=100, ge=1, le=1_000_000)
    momentum: float = Field(default=0.85, ge=0, lt=1)


class ButterflyInnerRotation(Settings):
    """R4 that is a butterfly of plane rotations behind a plain Hadamard matrix, its angles learned by Adam.

    ``objective``: ``reconstruction`` is the error of the down projection's output with its input and weight rounded;
    others see the input alone. ``learning_rate`` is in radians. ``block_size`` is that of the Hadamard matrix.
    """

    kind: Literal["butterfly"] = "butterfly"
    block_size: int | None = Field(default=None, ge=2)
    objective: ObjectiveName | Literal["reconstruction"] = "reconstruction"
    num_tokens: int = Field(default=16384, ge=1, le=1_000_000_000)
    batch_tokens: int = Field(default=1024, ge=1, le=1_000_000_000)
    steps: int = Field(default=100, ge=1, le=1_000_000)
    learning_rate: float = Field(default=0.02, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)

    @model_validator(mode="after")
    def _enough_tokens(self) -> ButterflyInnerRotation:
        if self.objective != "reconstruction":
            check_tokens(self.objective, min(self.num_tokens, self.batch_tokens))
        return self


TrainedInnerRotation = LearnedInnerRotation | ButterflyInnerRotation
"""R4 of which a part is learned in pass 2."""

Residual = Annotated[NoRotation | MergedHadamardRotation | LearnedResidualRotation, Field(discriminator="kind")]
Values = Annotated[NoRotation | MergedHadamardRotation | LearnedValueRotation, Field(discriminator="kind")]
PerHead = Annotated[NoRotation | HadamardRotation | LearnedRotation, Field(discriminator="kind")]
Inner = Annotated[
    NoRotation | BlockHadamardRotation | LearnedInnerRotation | ButterflyInnerRotation, Field(discriminator="kind")
]


class RotationSettings(Settings):
    """R1 (residual stream), R2 (values, per head), R3 (queries and keys, online), R4 (down_proj's input, online).

    ``from`` is the rotations.safetensors of an earlier run, or its artifact: what it holds of the R1 and R2 asked for
    here is taken from there, and only what it lacks is made. ``r1.from`` and ``r2.from`` name a file for one of them,
    ours or another program's, which must hold it.
    """

    source: str | None = Field(default=None, alias="from")
    r1: Residual = NoRotation()
    r2: Values = NoRotation()
    r3: PerHead = NoRotation()
    r4: Inner = NoRotation()

    @model_validator(mode="before")
    @classmethod
    def _no_butterfly_as_r3(cls, data: Any) -> Any:
        r3 = data.get("r3") if isinstance(data, dict) else None
        if isinstance(r3, dict) and r3.get("kind") == "butterfly":
            raise ValueError(
                "r3.kind butterfly would store and run what a learned R3 does, a matrix of head_dim for each KV head, "
                "and hold less: expected r3.kind learned"
            )
        return data
