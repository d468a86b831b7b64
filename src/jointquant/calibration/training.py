"""Rotations from samples, wherever these come from: the walk that has just ended, or files of an earlier one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from jointquant.distributed.ranks import ALONE, Ranks
from jointquant.models.stream import ModelStream
from jointquant.progress import Progress, tell
from jointquant.quantization.smoothing import inverse_at_output
from jointquant.recipe.recipe import Recipe
from jointquant.recipe.rotations import LearnedResidualRotation, LearnedRotation
from jointquant.recipe.training import quantizer_of, training_of
from jointquant.rotations.bundle import Rotations, Trace
from jointquant.rotations.hadamard import random_hadamard
from jointquant.rotations.layer_losses import LayerLosses, LayerWatch
from jointquant.rotations.learning import INITS, head_samples, initial_heads, learn_heads
from jointquant.rotations.names import InitName
from jointquant.rotations.optimizers import Learned
from jointquant.rotations.strategies import STRATEGIES, ResidualTask
from jointquant.rotations.undone import tell_undone, warn_of_undone
from jointquant.seeds import generator

Scales = dict[str, Tensor]
"""SmoothQuant's scales of one layer, by site."""


@dataclass(frozen=True)
class ModelSizes:
    """What learning needs to know of a model."""

    num_layers: int
    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int

    @classmethod
    def of(cls, stream: ModelStream) -> ModelSizes:
        """Those of an open model."""
        config = stream.config
        heads = config.num_attention_heads, stream.num_key_value_heads, stream.head_dim
        return cls(stream.num_layers, config.hidden_size, *heads)


class ResidualTraining:
    """R1, trained once the samples of all layers are there: [layers, tokens, hidden].

    Attributes:
        watched: whether the losses of each layer are taken on the way.
        layer_losses: what they were.
        besides: seconds that this took.
    """

    def __init__(self, sizes: ModelSizes, recipe: Recipe, ranks: Ranks = ALONE) -> None:
        settings = recipe.rotations.r1
        assert isinstance(settings, LearnedResidualRotation)
        self.sizes, self.recipe, self.settings, self.ranks = sizes, recipe, settings, ranks
        self._samples: Tensor | None = None
        self.watched = False
        self.layer_losses: LayerLosses | None = None
        self.besides = 0.0

    @property
    def samples(self) -> Tensor:
        """[layers, tokens, hidden], filled layer by layer."""
        assert self._samples is not None
        return self._samples

    def take(self, index: int, sample: Tensor) -> None:
        """A layer's sample [tokens, hidden]; every layer's has the same size."""
        if self._samples is None:  # all at once: joining them later would need as much room again
            self._samples = sample.new_empty(self.sizes.num_layers, *sample.shape)
        self._samples[index] = sample

    def learn(self, sensitivities: Tensor | None) -> tuple[Learned, ...]:
        """R1, or one R1 per layer; sensitivities [layers] where the weights ask for them."""
        settings = self.settings
        task = ResidualTask(
            self.samples,
            residual_start(self.sizes.hidden_size, self.recipe),
            training_of(settings, quantizer_of(self.recipe.activations)),
            settings.weighting,
            generator(self.recipe.calibration.seed, "r1 batches"),
            sensitivities,
            self.ranks,
        )
        if not self.watched:
            return STRATEGIES[settings.strategy](task)
        watch = LayerWatch(task, settings.strategy)
        learned = STRATEGIES[settings.strategy](watch.task)
        self.layer_losses, self.besides = watch.result(), watch.seconds
        return learned


class HeadTraining:
    """The R2s, each trained as soon as its layer's sample is there, which is let go then."""

    def __init__(self, sizes: ModelSizes, recipe: Recipe, ranks: Ranks = ALONE) -> None:
        settings = recipe.rotations.r2
        assert isinstance(settings, LearnedRotation)
        self.sizes, self.recipe, self.init, self.ranks = sizes, recipe, settings.init, ranks
        quantizer = quantizer_of(recipe.activations.model_copy(update={"group_size": None}))
        self.training = training_of(settings, quantizer)
        self.learned: list[Learned] = []

    def take(self, index: int, sample: Tensor, scales: Scales) -> None:
        """Learn R2 of a layer on what its o_proj reads, [tokens, heads · head_dim], before ``scales`` divide it."""
        sizes = self.sizes
        if scales:
            sample = sample * inverse_at_output(scales["o_in"], sizes.num_attention_heads).to(sample)
        samples = head_samples(sample, sizes.num_key_value_heads, sizes.head_dim)
        initial = heads_at_start(sizes, self.recipe, self.init, index)
        batches = generator(self.recipe.calibration.seed, f"r2 {index} batches")
        self.learned.append(learn_heads(samples, initial, self.training, batches, self.ranks))


class RecipeTraining:
    """All rotations of one recipe.

    Args:
        sizes: of the model.
        recipe: all settings.
        reused: rotations that need not be made.
        ranks: who shares the work.

    Attributes:
        residual: what R1 is learned by; None: it is reused, drawn, or not asked for.
        heads: what the R2s are learned by; likewise.
    """

    def __init__(self, sizes: ModelSizes, recipe: Recipe, reused: Rotations, ranks: Ranks = ALONE) -> None:
        self.sizes, self.recipe, self.reused = sizes, recipe, reused
        learned = {name: getattr(recipe.rotations, name).kind == "learned" for name in ("r1", "r2")}
        self.residual = ResidualTraining(sizes, recipe, ranks) if learned["r1"] and not reused.r1 else None
        self.heads = HeadTraining(sizes, recipe, ranks) if learned["r2"] and not reused.r2 else None

    def finish(self, scales: Sequence[Scales], sensitivities: Tensor | None, progress: Progress) -> Rotations:
        """The rotations, once all samples are there.

        Args:
            scales: SmoothQuant's, by layer; empty where there are none.
            sensitivities: [layers], where the weights ask for them.
            progress: where the training of R1 is shown.
        """
        sizes, recipe = self.sizes, self.recipe
        traces = dict(self.reused.traces)
        r1, r2 = self.reused.r1, self.reused.r2
        if self.residual is not None:
            with progress.stage("learn R1", 1) as stage:
                r1 = _traced(self.residual.learn(sensitivities), "r1", traces)
                stage.advance()
        elif not r1 and recipe.rotations.r1.kind == "hadamard":
            r1 = (random_hadamard(sizes.hidden_size, generator(recipe.calibration.seed, "r1")),)
        if self.heads is not None:
            r2 = _traced(self.heads.learned, "r2", traces)
        elif not r2 and recipe.rotations.r2.kind == "hadamard":
            r2 = tuple(heads_at_start(sizes, recipe, "hadamard", index) for index in range(sizes.num_layers))
        return Rotations(r1, r2, traces, tuple(scales))


def tell_learned(progress: Progress, rotations: Rotations, reused: Rotations) -> None:
    """Tell how each rotation was learned that was not there before, and warn of what was undone."""
    for name in (name for name in rotations.traces if name not in reused.traces):
        trace = rotations.traces[name]
        facts = {"losses": list(trace.losses), "angles": list(trace.angles)}
        tell(progress, "learned", stage="calibrate", rotation=name, **facts)
    undone = {name: each for name, each in rotations.undone.items() if name not in reused.traces}
    tell_undone(progress, "calibrate", undone)
    warn_of_undone(undone)


def residual_start(hidden_size: int, recipe: Recipe) -> Tensor:
    """Where the training of R1 starts: [hidden, hidden] float64."""
    settings = recipe.rotations.r1
    assert isinstance(settings, LearnedResidualRotation)
    return INITS[settings.init](hidden_size, generator(recipe.calibration.seed, "r1"))


def heads_at_start(sizes: ModelSizes, recipe: Recipe, kind: InitName, layer: int) -> Tensor:
    """Where R2 of a layer starts, or what it is when it is drawn: [kv_heads, head_dim, head_dim]."""
    rng = generator(recipe.calibration.seed, f"r2 {layer}")
    return initial_heads(kind, sizes.num_key_value_heads, sizes.head_dim, rng)


def _traced(learned: Sequence[Learned], name: str, traces: dict[str, Trace]) -> tuple[Tensor, ...]:
    """The rotations; what is known of their training goes to ``traces`` under the names of their tensors."""
    single = name == "r1" and len(learned) == 1
    for index, result in enumerate(learned):
        traces[name if single else f"{name}.{index}"] = Trace.of(result.losses, result.angles, result.undone)
    return tuple(result.rotation for result in learned)
