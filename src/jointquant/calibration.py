"""Pass 1: what the unquantized model's activations say. Samples become rotations; nothing is quantized yet."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn

from jointquant.errors import require
from jointquant.models.stream import LayerArguments, ModelStream, Place
from jointquant.models.transforms import fuse_norms
from jointquant.progress import Progress
from jointquant.propagation import Observer, Observers, advance, embed, watching
from jointquant.recipe import LearnedResidualRotation, LearnedRotation, Recipe
from jointquant.rotations.bundle import Rotations, Trace
from jointquant.rotations.hadamard import random_hadamard
from jointquant.rotations.learning import INITS, Training, head_samples, initial_heads, learn
from jointquant.rotations.objectives import OBJECTIVES, Quantizer
from jointquant.rotations.optimizers import OPTIMIZERS, Learned, Schedule
from jointquant.rotations.sampling import TokenSample
from jointquant.rotations.strategies import STRATEGIES, ResidualTask
from jointquant.seeds import generator
from jointquant.sensitivity import Sensitivity
from jointquant.settings import ActivationSettings
from jointquant.smoothing import Smoother


class Learner(Protocol):
    """Learns a rotation from what it sees of each layer on the walk through the unquantized model."""

    def observers(self) -> Observers:
        """Who watches the inputs of a layer's modules while the layer runs."""

    def before(self, layer: nn.Module, hidden_states: Tensor, arguments: LayerArguments) -> None:
        """A layer of fused norms is about to run on hidden_states [windows, T, hidden]."""

    def after(self, index: int) -> None:
        """Layer ``index`` has run."""


def calibrate(stream: ModelStream, recipe: Recipe, windows: Tensor, place: Place, progress: Progress) -> Rotations:
    """The rotations of a recipe: reused, drawn, or learned on the activations of ``windows`` [n, T].

    R2 of a layer is learned as soon as the layer has run; R1 after all layers, on its samples of their tokens. The
    walk through the layers is left out where nothing is learned.

    Raises:
        InputError: the rotations to reuse cannot be read, or do not fit the model or the recipe.
    """
    (result,) = calibrate_together(stream, [recipe], windows, place, progress)
    return result.rotations


@dataclass(frozen=True)
class Calibrated:
    """The rotations of one recipe, and the seconds that calibrating it alone would take."""

    rotations: Rotations
    seconds: float


def calibrate_together(
    stream: ModelStream, recipes: Sequence[Recipe], windows: Tensor, place: Place, progress: Progress
) -> list[Calibrated]:
    """Calibrate several recipes in one walk through the layers, each as ``calibrate`` does it alone.

    Raises:
        InputError: as ``calibrate``.
    """
    each = [RecipeCalibration(stream, recipe, windows, place) for recipe in recipes]
    learners = [calibration for calibration in each if calibration.learners]
    start = time.perf_counter()
    if learners:
        walk(stream, windows, place, learners, progress)
    shared = time.perf_counter() - start - sum(calibration.seconds for calibration in learners)
    results = []
    for calibration in each:
        start = time.perf_counter()
        rotations = calibration.finish(progress)
        alone = calibration.seconds + (shared if calibration.learners else 0.0)
        results.append(Calibrated(rotations, alone + time.perf_counter() - start))
    return results


def walk(stream: ModelStream, windows: Tensor, place: Place, learners: Sequence[Learner], progress: Progress) -> None:
    """Run the unquantized layers, norms fused, in order, before the eyes of the learners."""
    frontend = stream.frontend(place)
    arguments = frontend.layer_arguments(windows)
    hidden_states = embed(frontend, windows)
    del frontend
    with progress.stage("calibrate", stream.num_layers) as stage:
        for index in range(stream.num_layers):
            layer = stream.layer(index, place)
            fuse_norms(layer, stream.architecture)
            for learner in learners:
                learner.before(layer, hidden_states, arguments[index])
            with watching(layer, *(learner.observers() for learner in learners)):
                advance(layer, hidden_states, arguments[index])
            for learner in learners:
                learner.after(index)
            stage.advance()


class RecipeCalibration:
    """All that one recipe learns on a walk: a learner made of those of its R1 and R2.

    Attributes:
        learners: what learns; empty where the recipe's rotations are reused or drawn.
        seconds: how long they have worked besides the walk itself.
    """

    def __init__(self, stream: ModelStream, recipe: Recipe, windows: Tensor, place: Place) -> None:
        self.stream, self.recipe, self.seconds = stream, recipe, 0.0
        self.reused = reusable_rotations(stream, recipe)
        self.residual = None if self.reused.r1 else ResidualLearner.of(stream, recipe, windows, place)
        self.smoother = Smoother.of(stream, recipe)
        self.heads = None if self.reused.r2 else HeadLearner.of(stream, recipe, windows, self.smoother)
        parts = (self.smoother, self.residual, self.heads)  # the smoother closes a layer before R2 is learned on it
        self.learners: list[Learner] = [part for part in parts if part is not None]

    def observers(self) -> Observers:
        """Those of all parts; where two watch one place, the earlier part sees it first."""
        found: dict[str, list[Observer]] = {}
        for learner in self.learners:
            for name, observer in learner.observers().items():
                found.setdefault(name, []).append(observer)
        return {name: _all(observers) for name, observers in found.items()}

    def before(self, layer: nn.Module, hidden_states: Tensor, arguments: LayerArguments) -> None:
        """Pass it on."""
        start = time.perf_counter()
        for learner in self.learners:
            learner.before(layer, hidden_states, arguments)
        self.seconds += time.perf_counter() - start

    def after(self, index: int) -> None:
        """Pass it on."""
        start = time.perf_counter()
        for learner in self.learners:
            learner.after(index)
        self.seconds += time.perf_counter() - start

    def finish(self, progress: Progress) -> Rotations:
        """The recipe's rotations, once the walk is over."""
        stream, recipe = self.stream, self.recipe
        traces = dict(self.reused.traces)
        r1, r2 = self.reused.r1, self.reused.r2
        if self.residual is not None:
            with progress.stage("learn R1", 1) as stage:
                r1 = _traced(self.residual.learn(), "r1", traces)
                stage.advance()
        elif not r1 and recipe.rotations.r1.kind == "hadamard":
            r1 = (random_hadamard(stream.config.hidden_size, generator(recipe.calibration.seed, "r1")),)
        if self.heads is not None:
            r2 = _traced(self.heads.learned, "r2", traces)
        elif not r2 and recipe.rotations.r2.kind == "hadamard":
            r2 = tuple(_initial_heads(stream, recipe, "hadamard", index) for index in range(stream.num_layers))
        return Rotations(r1, r2, traces, tuple(self.smoother.layers) if self.smoother else ())


def _all(observers: Sequence[Observer]) -> Observer:
    def observe(x: Tensor) -> None:
        for observer in observers:
            observer(x)

    return observe


class ResidualLearner:
    """Samples the residual sites layer by layer, ``num_tokens`` tokens over all of them, and learns R1 at the end."""

    def __init__(
        self, stream: ModelStream, recipe: Recipe, settings: LearnedResidualRotation, windows: Tensor, place: Place
    ) -> None:
        seed, sites = recipe.calibration.seed, stream.architecture.residual_sites
        visits = windows.numel() * stream.num_layers * len(sites)
        self.settings = settings
        self.sample = TokenSample(settings.num_tokens / visits, generator(seed, "r1 sample"))
        self.places = [site.linears[0] for site in sites]
        self.layers: list[Tensor] = []  # per layer [tokens, hidden]
        self.initial = INITS[settings.init](stream.config.hidden_size, generator(seed, "r1"))
        self.training = training_of(settings, quantizer_of(recipe.activations))
        self.batches = generator(seed, "r1 batches")
        measured = settings.strategy == "joint" and settings.weighting == "sensitivity"
        self.sensitivity = Sensitivity(stream, recipe, self.initial, place) if measured else None

    @classmethod
    def of(cls, stream: ModelStream, recipe: Recipe, windows: Tensor, place: Place) -> ResidualLearner | None:
        """What the recipe's R1 needs; None where it is not learned."""
        r1 = recipe.rotations.r1
        return cls(stream, recipe, r1, windows, place) if isinstance(r1, LearnedResidualRotation) else None

    def observers(self) -> Observers:
        """At the sites that read the residual stream."""
        return dict.fromkeys(self.places, self.sample.update)

    def before(self, layer: nn.Module, hidden_states: Tensor, arguments: LayerArguments) -> None:
        """Measure the layer's sensitivity, where the weights ask for it."""
        if self.sensitivity is not None:
            self.sensitivity.visit(layer, hidden_states, arguments)

    def after(self, index: int) -> None:
        """Close the layer's sample."""
        self.layers.append(self.sample.take())

    def learn(self) -> tuple[Learned, ...]:
        """R1, or one R1 per layer."""
        sensitivities = None if self.sensitivity is None else self.sensitivity.finish()
        task = ResidualTask(
            tuple(self.layers), self.initial, self.training, self.settings.weighting, self.batches, sensitivities
        )
        return STRATEGIES[self.settings.strategy].learn(task)


class HeadLearner:
    """Samples each layer's values, as o_proj reads them (smoothed, where they will be), and learns its R2."""

    def __init__(
        self,
        stream: ModelStream,
        recipe: Recipe,
        settings: LearnedRotation,
        windows: Tensor,
        smoother: Smoother | None = None,
    ) -> None:
        seed = recipe.calibration.seed
        self.stream, self.recipe, self.settings, self.smoother = stream, recipe, settings, smoother
        self.sample = TokenSample(settings.num_tokens / windows.numel(), generator(seed, "r2 sample"))
        quantizer = quantizer_of(recipe.activations.model_copy(update={"group_size": None}))
        self.training = training_of(settings, quantizer)
        self.learned: list[Learned] = []

    @classmethod
    def of(
        cls, stream: ModelStream, recipe: Recipe, windows: Tensor, smoother: Smoother | None = None
    ) -> HeadLearner | None:
        """What the recipe's R2 needs; None where it is not learned."""
        r2 = recipe.rotations.r2
        return cls(stream, recipe, r2, windows, smoother) if isinstance(r2, LearnedRotation) else None

    def observers(self) -> Observers:
        """At the input of the attention's output projection."""
        return {self.stream.architecture.output: self.sample.update}

    def before(self, layer: nn.Module, hidden_states: Tensor, arguments: LayerArguments) -> None:
        """Nothing to prepare."""

    def after(self, index: int) -> None:
        """Learn the layer's R2; the smoother has closed the layer before."""
        sample = self.sample.take()
        if self.smoother is not None:
            sample = sample * self.smoother.inverse_at_output(index).to(sample)
        samples = head_samples(sample, self.stream.num_key_value_heads, self.stream.head_dim)
        initial = _initial_heads(self.stream, self.recipe, self.settings.init, index)
        batches = generator(self.recipe.calibration.seed, f"r2 {index} batches")
        self.learned.append(learn(samples, initial, self.training, batches))


def training_of(settings: LearnedRotation, quantizer: Quantizer | None) -> Training:
    """The training that a recipe describes, for activations that ``quantizer`` will read."""
    schedule = Schedule(settings.steps, settings.learning_rate, settings.momentum)
    objective = OBJECTIVES[settings.objective](quantizer)
    return Training(objective, OPTIMIZERS[settings.optimizer], schedule, settings.batch_tokens)


def quantizer_of(settings: ActivationSettings) -> Quantizer | None:
    """The activation quantizer that a recipe describes; None where it is off."""
    return None if settings.format is None else Quantizer(settings.format, settings.fixed_ratio)


def reusable_rotations(stream: ModelStream, recipe: Recipe) -> Rotations:
    """What the file named by ``rotations.from`` holds of the rotations that the recipe asks for.

    Raises:
        InputError: the file cannot be read, or its rotations do not fit the model or the recipe.
    """
    settings = recipe.rotations
    if settings.source is None:
        return Rotations()
    stored = Rotations.load(Path(settings.source))
    hidden, head = stream.config.hidden_size, stream.head_dim
    if settings.r1.kind == "none":
        stored = replace(stored, r1=())
    elif stored.r1:
        per_layer = isinstance(settings.r1, LearnedResidualRotation) and settings.r1.per_layer
        _check_shapes("R1", stored.r1, stream.num_layers if per_layer else 1, (hidden, hidden), settings.source)
    if settings.r2.kind == "none":
        stored = replace(stored, r2=())
    elif stored.r2:
        shape = (stream.num_key_value_heads, head, head)
        _check_shapes("R2", stored.r2, stream.num_layers, shape, settings.source)
    used = stored.tensors()
    return replace(stored, traces={name: trace for name, trace in stored.traces.items() if name in used})


def _check_shapes(name: str, stored: tuple[Tensor, ...], count: int, shape: tuple[int, ...], source: str) -> None:
    found = (len(stored), *stored[0].shape)
    require(
        len(stored) == count and all(rotation.shape == shape for rotation in stored),
        f"rotations.from {source}: {name} is {list(found)} (number and shape), expected {[count, *shape]}",
    )


def _traced(learned: Sequence[Learned], name: str, traces: dict[str, Trace]) -> tuple[Tensor, ...]:
    """The rotations; what is known of their training goes to ``traces`` under the names of their tensors."""
    single = name == "r1" and len(learned) == 1
    for index, result in enumerate(learned):
        traces[name if single else f"{name}.{index}"] = Trace(result.losses, result.angles)
    return tuple(result.rotation for result in learned)


def _initial_heads(stream: ModelStream, recipe: Recipe, kind: str, layer: int) -> Tensor:
    rng = generator(recipe.calibration.seed, f"r2 {layer}")
    return initial_heads(kind, stream.num_key_value_heads, stream.head_dim, rng)
