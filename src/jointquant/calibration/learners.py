"""What learns on the walk of pass 1: R1 from samples of the residual sites, R2 from each layer's values."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import Tensor, nn

from jointquant.activations.hidden_states import HiddenStates
from jointquant.activations.propagation import Observers
from jointquant.calibration.sensitivity import Sensitivity
from jointquant.calibration.smoothing import Smoother
from jointquant.distributed.ranks import ALONE, Ranks
from jointquant.models.layer import LayerArguments, Place
from jointquant.models.stream import ModelStream
from jointquant.recipe.recipe import LearnedResidualRotation, LearnedRotation, Recipe
from jointquant.recipe.training import quantizer_of, training_of
from jointquant.rotations.learning import INITS, head_samples, initial_heads, learn_heads
from jointquant.rotations.names import InitName
from jointquant.rotations.optimizers import Learned
from jointquant.rotations.sampling import TokenSample
from jointquant.rotations.strategies import STRATEGIES, ResidualTask
from jointquant.seeds import generator

GENERATOR = "generator"


class Learner(Protocol):
    """Learns a rotation from what it sees of each layer on the walk through the unquantized model."""

    def observers(self) -> Observers:
        """Who watches the inputs of a layer's modules while the layer runs."""

    def before(
        self, layer: nn.Module, states: HiddenStates, arguments: LayerArguments
    ) -> AbstractContextManager[object]:
        """A layer of fused norms is about to run on ``states``; while it does, it is as the result makes it."""

    def after(self, index: int) -> None:
        """Layer ``index`` has run."""

    def record(self) -> dict[str, Tensor]:
        """What the last layer left; it does not change any more."""

    def state(self) -> dict[str, Tensor]:
        """What else the next layer needs, as copies: a later state replaces it."""

    def restore(self, records: list[dict[str, Tensor]], state: dict[str, Tensor]) -> None:
        """Go on behind the layers that left ``records``, the last of them with ``state``."""


class ResidualLearner:
    """Samples the residual sites layer by layer, ``num_tokens`` tokens over all of them, and learns R1 at the end."""

    def __init__(
        self, stream: ModelStream, recipe: Recipe, windows: Tensor, place: Place, ranks: Ranks = ALONE
    ) -> None:
        settings, seed, sites = recipe.rotations.r1, recipe.calibration.seed, stream.architecture.residual_sites
        assert isinstance(settings, LearnedResidualRotation)
        visits = windows.numel() * stream.num_layers * len(sites)
        self.settings, self.device, self.ranks = settings, place.device, ranks
        self.sample = TokenSample(settings.num_tokens / visits, generator(seed, "r1 sample"), ranks)
        self.stream = stream
        self.samples: Tensor | None = None  # [layers, tokens, hidden], filled layer by layer
        self.done = 0
        self.initial = INITS[settings.init](stream.config.hidden_size, generator(seed, "r1"))
        self.training = training_of(settings, quantizer_of(recipe.activations))
        self.batches = generator(seed, "r1 batches")
        measured = settings.strategy == "joint" and settings.weighting == "sensitivity"
        self.sensitivity = Sensitivity(stream, recipe, self.initial, place) if measured else None

    def observers(self) -> Observers:
        """At the sites that read the residual stream: each token once, however many experts read it."""
        places = [site.readers[0] for site in self.stream.architecture_of(self.done).residual_sites]
        return dict.fromkeys(places, self.sample.update)

    def before(
        self, layer: nn.Module, states: HiddenStates, arguments: LayerArguments
    ) -> AbstractContextManager[object]:
        """Measure the layer's sensitivity, where the weights ask for it."""
        self.sample.expect(states.token_parts(), len(self.observers()))
        if self.sensitivity is not None:
            self.sensitivity.visit(layer, states, arguments)
        return nullcontext()

    def after(self, index: int) -> None:
        """Close the layer's sample."""
        self._keep(self.sample.take())

    def _keep(self, sample: Tensor) -> None:
        """The next layer's sample [tokens, hidden]; every layer's has the same size."""
        if self.samples is None:  # all at once: joining them later would need as much room again
            self.samples = sample.new_empty(self.stream.num_layers, *sample.shape)
        self.samples[self.done] = sample
        self.done += 1

    def record(self) -> dict[str, Tensor]:
        """The last layer's sample."""
        assert self.samples is not None
        return {"sample": self.samples[self.done - 1]}

    def state(self) -> dict[str, Tensor]:
        """Where the sampling stands, and the probes that measure sensitivity."""
        probes = {} if self.sensitivity is None else self.sensitivity.state()
        return {GENERATOR: self.sample.generator.get_state()} | probes

    def restore(self, records: list[dict[str, Tensor]], state: dict[str, Tensor]) -> None:
        """The samples of the layers so far."""
        for record in records:
            self._keep(record["sample"].to(self.device))
        self.sample.generator.set_state(state[GENERATOR])
        if self.sensitivity is not None:
            self.sensitivity.restore({name: probe for name, probe in state.items() if name != GENERATOR})

    def learn(self) -> tuple[Learned, ...]:
        """R1, or one R1 per layer."""
        assert self.samples is not None
        sensitivities = None if self.sensitivity is None else self.sensitivity.finish()
        weighting = self.settings.weighting
        task = ResidualTask(
            self.samples, self.initial, self.training, weighting, self.batches, sensitivities, self.ranks
        )
        return STRATEGIES[self.settings.strategy](task)


class HeadLearner:
    """Samples each layer's values, as o_proj reads them (smoothed, where they will be), and learns its R2."""

    def __init__(
        self, stream: ModelStream, recipe: Recipe, windows: Tensor, smoother: Smoother | None, ranks: Ranks
    ) -> None:
        settings, seed = recipe.rotations.r2, recipe.calibration.seed
        assert isinstance(settings, LearnedRotation)
        self.stream, self.recipe, self.smoother, self.ranks = stream, recipe, smoother, ranks
        self.sample = TokenSample(settings.num_tokens / windows.numel(), generator(seed, "r2 sample"), ranks)
        quantizer = quantizer_of(recipe.activations.model_copy(update={"group_size": None}))
        self.training = training_of(settings, quantizer)
        self.init = settings.init
        self.learned: list[Learned] = []

    def observers(self) -> Observers:
        """At the input of the attention's output projection."""
        return {self.stream.architecture.output: self.sample.update}

    def before(
        self, layer: nn.Module, states: HiddenStates, arguments: LayerArguments
    ) -> AbstractContextManager[object]:
        """Tell the sample which tokens come by."""
        self.sample.expect(states.token_parts())
        return nullcontext()

    def after(self, index: int) -> None:
        """Learn the layer's R2; the smoother has closed the layer before."""
        sample = self.sample.take()
        if self.smoother is not None:
            sample = sample * self.smoother.inverse_at_output(index).to(sample)
        samples = head_samples(sample, self.stream.num_key_value_heads, self.stream.head_dim)
        initial = heads_at_start(self.stream, self.recipe, self.init, index)
        batches = generator(self.recipe.calibration.seed, f"r2 {index} batches")
        self.learned.append(learn_heads(samples, initial, self.training, batches, self.ranks))

    def record(self) -> dict[str, Tensor]:
        """The last layer's R2 and how it was learned."""
        last = self.learned[-1]
        losses, angles = (torch.tensor(values, dtype=torch.float64) for values in (last.losses, last.angles))
        return {"rotation": last.rotation, "losses": losses, "angles": angles}

    def state(self) -> dict[str, Tensor]:
        """Where the sampling stands."""
        return {GENERATOR: self.sample.generator.get_state()}

    def restore(self, records: list[dict[str, Tensor]], state: dict[str, Tensor]) -> None:
        """The rotations of the layers so far."""
        self.sample.generator.set_state(state[GENERATOR])
        self.learned = [
            Learned(record["rotation"], tuple(record["losses"].tolist()), tuple(record["angles"].tolist()))
            for record in records
        ]


def heads_at_start(stream: ModelStream, recipe: Recipe, kind: InitName, layer: int) -> Tensor:
    """Where R2 of a layer starts, or what it is when it is drawn: [kv_heads, head_dim, head_dim]."""
    rng = generator(recipe.calibration.seed, f"r2 {layer}")
    return initial_heads(kind, stream.num_key_value_heads, stream.head_dim, rng)
