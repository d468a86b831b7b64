"""What watches the walk of pass 1: samples of each layer's sites go to whoever learns from them, or keeps them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import astuple
from typing import Protocol

import torch
from torch import Tensor, nn

from jointquant.activations.hidden_states import HiddenStates
from jointquant.activations.propagation import Observers
from jointquant.calibration.sensitivity import Sensitivity
from jointquant.calibration.smoothing import Smoother
from jointquant.calibration.training import HeadTraining, ResidualTraining, residual_start
from jointquant.distributed.ranks import ALONE, Ranks
from jointquant.models.layer import LayerArguments, Place
from jointquant.models.stream import ModelStream
from jointquant.recipe.recipe import Recipe
from jointquant.recipe.rotations import LearnedResidualRotation, LearnedRotation
from jointquant.rotations.optimizers import Learned
from jointquant.rotations.sampling import TokenSample
from jointquant.rotations.undone import Undone
from jointquant.seeds import generator

GENERATOR = "generator"
SAMPLE = "sample"


class Learner(Protocol):
    """Learns from what it sees of each layer on the walk through the unquantized model, or keeps that."""

    def observers(self) -> Observers:
        """Who watches the inputs of a layer's modules while the layer runs."""

    def before(
        self, layer: nn.Module, states: HiddenStates, arguments: LayerArguments
    ) -> AbstractContextManager[object]:
        """A layer, its norms as pass 2 has them, is about to run on ``states``; meanwhile it is as the result is."""

    def after(self, index: int) -> None:
        """Layer ``index`` has run."""

    def record(self) -> dict[str, Tensor]:
        """What the last layer left; it does not change any more."""

    def state(self) -> dict[str, Tensor]:
        """What else the next layer needs, as copies: a later state replaces it."""

    def restore(self, records: list[dict[str, Tensor]], state: dict[str, Tensor]) -> None:
        """Go on behind the layers that left ``records``, the last of them with ``state``."""


class Sampler:
    """A seeded sample of the tokens at some places of each layer.

    Args:
        places: of the layer of a number, the modules whose inputs are sampled.
        sample: keeps the tokens.
    """

    def __init__(self, places: Callable[[int], list[str]], sample: TokenSample) -> None:
        self.places, self.sample, self.layer = places, sample, 0

    def observers(self) -> Observers:
        """At the places of the layer that is next."""
        return dict.fromkeys(self.places(self.layer), self.sample.update)

    def expect(self, states: HiddenStates) -> None:
        """Tell the sample which tokens will come by."""
        self.sample.expect(states.token_parts(), len(self.places(self.layer)))

    def take(self) -> Tensor:
        """The layer's sample [tokens, features] float32; the next layer is next."""
        self.layer += 1
        return self.sample.take()

    def state(self) -> dict[str, Tensor]:
        """Where the sampling stands."""
        return {GENERATOR: self.sample.generator.get_state()}

    def restore(self, layers: int, state: dict[str, Tensor]) -> None:
        """Go on behind so many layers."""
        self.layer = layers
        self.sample.generator.set_state(state[GENERATOR])


def residual_sampler(stream: ModelStream, recipe: Recipe, windows: Tensor, ranks: Ranks = ALONE) -> Sampler:
    """Where the residual stream is read, ``num_tokens`` tokens over all layers; each once, whatever experts read it.

    Args:
        stream: the model.
        recipe: of a learned R1.
        windows: [n, T] that the walk sees.
        ranks: who shares them.
    """
    settings = recipe.rotations.r1
    assert isinstance(settings, LearnedResidualRotation)
    visits = windows.numel() * stream.num_layers * len(stream.architecture.residual_sites)
    share = settings.num_tokens / visits

    def places(layer: int) -> list[str]:
        return [site.readers[0] for site in stream.architecture_of(layer).residual_sites]

    return Sampler(places, TokenSample(share, generator(recipe.calibration.seed, "r1 sample"), ranks))


def head_sampler(stream: ModelStream, recipe: Recipe, windows: Tensor, ranks: Ranks = ALONE) -> Sampler:
    """What o_proj reads, ``num_tokens`` tokens of each layer; arguments as of ``residual_sampler``, of a learned R2."""
    settings = recipe.rotations.r2
    assert isinstance(settings, LearnedRotation)
    share = settings.num_tokens / windows.numel()
    sample = TokenSample(share, generator(recipe.calibration.seed, "r2 sample"), ranks)
    return Sampler(lambda _: [stream.architecture.output], sample)


class SamplingLearner:
    """A learner that sees of each layer what a sampler draws; what becomes of the sample, each kind says for itself."""

    def __init__(self, sampler: Sampler) -> None:
        self.sampler = sampler

    def observers(self) -> Observers:
        """At the sampled places."""
        return self.sampler.observers()

    def before(
        self, layer: nn.Module, states: HiddenStates, arguments: LayerArguments
    ) -> AbstractContextManager[object]:
        """Tell the sample which tokens come by."""
        self.sampler.expect(states)
        return nullcontext()

    def state(self) -> dict[str, Tensor]:
        """Where the sampling stands."""
        return self.sampler.state()

    def restore(self, records: list[dict[str, Tensor]], state: dict[str, Tensor]) -> None:
        """Go on sampling behind the layers that left ``records``."""
        self.sampler.restore(len(records), state)


class ResidualLearner(SamplingLearner):
    """Samples the residual sites layer by layer for the training of R1, which follows the walk."""

    def __init__(self, sampler: Sampler, training: ResidualTraining, device: torch.device) -> None:
        super().__init__(sampler)
        self.training, self.device = training, device

    def after(self, index: int) -> None:
        """Close the layer's sample."""
        self.training.take(index, self.sampler.take())

    def record(self) -> dict[str, Tensor]:
        """The last layer's sample."""
        return {SAMPLE: self.training.samples[self.sampler.layer - 1]}

    def restore(self, records: list[dict[str, Tensor]], state: dict[str, Tensor]) -> None:
        """The samples of the layers so far."""
        super().restore(records, state)
        for index, record in enumerate(records):
            self.training.take(index, record[SAMPLE].to(self.device))


class HeadLearner(SamplingLearner):
    """Samples each layer's values, as o_proj reads them, and has its R2 learned (smoothed, where they will be)."""

    def __init__(self, sampler: Sampler, training: HeadTraining, smoother: Smoother | None) -> None:
        super().__init__(sampler)
        self.training, self.smoother = training, smoother

    def after(self, index: int) -> None:
        """Learn the layer's R2; the smoother has closed the layer before."""
        scales = {} if self.smoother is None else self.smoother.layers[index]
        self.training.take(index, self.sampler.take(), scales)

    def record(self) -> dict[str, Tensor]:
        """The last layer's R2 and how it was learned."""
        last = self.training.learned[-1]
        told = {"losses": last.losses, "angles": last.angles, "undone": astuple(last.undone)}
        numbers = {name: torch.tensor(values, dtype=torch.float64) for name, values in told.items()}
        return {"rotation": last.rotation} | numbers

    def restore(self, records: list[dict[str, Tensor]], state: dict[str, Tensor]) -> None:
        """The rotations of the layers so far."""
        super().restore(records, state)
        self.training.learned = [
            Learned(
                record["rotation"],
                tuple(record["losses"].tolist()),
                tuple(record["angles"].tolist()),
                Undone.of_numbers(record["undone"].tolist()),
            )
            for record in records
        ]


class SampleKeeper(SamplingLearner):
    """Samples some places of each layer for later: nothing is learned, and the record is all that is kept."""

    def __init__(self, sampler: Sampler) -> None:
        super().__init__(sampler)
        self.last: Tensor | None = None

    def after(self, index: int) -> None:
        """Close the layer's sample; the one before goes."""
        self.last = self.sampler.take()

    def record(self) -> dict[str, Tensor]:
        """The last layer's sample."""
        assert self.last is not None
        return {SAMPLE: self.last}


class SensitivityLearner:
    """Measures what quantizing each layer's inputs does to the output, from where the training of R1 starts."""

    def __init__(self, stream: ModelStream, recipe: Recipe, place: Place) -> None:
        start = residual_start(stream.config.hidden_size, recipe)
        self.sensitivity = Sensitivity(stream, recipe, start, place)

    def observers(self) -> Observers:
        """Nobody: the probes run by themselves."""
        return {}

    def before(
        self, layer: nn.Module, states: HiddenStates, arguments: LayerArguments
    ) -> AbstractContextManager[object]:
        """Take the probes through the layer."""
        self.sensitivity.visit(layer, states, arguments)
        return nullcontext()

    def after(self, index: int) -> None:
        """Nothing is left to do."""

    def record(self) -> dict[str, Tensor]:
        """Nothing besides the state."""
        return {}

    def state(self) -> dict[str, Tensor]:
        """The probes."""
        return self.sensitivity.state()

    def restore(self, records: list[dict[str, Tensor]], state: dict[str, Tensor]) -> None:
        """Go on with the probes."""
        self.sensitivity.restore(state)


def sensitivity_learner(stream: ModelStream, recipe: Recipe, place: Place) -> SensitivityLearner | None:
    """The measurement that a joint R1 is weighted by; None: the recipe asks for none."""
    r1 = recipe.rotations.r1
    wanted = isinstance(r1, LearnedResidualRotation) and r1.strategy == "joint" and r1.weighting == "sensitivity"
    return SensitivityLearner(stream, recipe, place) if wanted else None
