"""Pass 1: what the unquantized model's activations say. Samples become rotations; nothing is quantized yet."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor

from jointquant.models.stream import ModelStream, Place
from jointquant.models.transforms import fuse_norms
from jointquant.progress import Progress
from jointquant.propagation import Observers, advance, embed, watching
from jointquant.recipe import LearnedRotation, Recipe
from jointquant.rotations.bundle import Rotations
from jointquant.rotations.hadamard import random_hadamard
from jointquant.rotations.learning import head_samples, initial_heads, initial_rotation, learn
from jointquant.rotations.optimizers import Learned
from jointquant.rotations.sampling import TokenSample
from jointquant.seeds import generator


def calibrate(stream: ModelStream, recipe: Recipe, windows: Tensor, place: Place, progress: Progress) -> Rotations:
    """The rotations of a recipe, learned on the activations of ``windows`` [n, T] where it says so.

    R2 of a layer is learned as soon as the layer has run; R1 after all layers, on its sample of their tokens.
    """
    settings, seed = recipe.rotations, recipe.calibration.seed
    pool = _residual_sample(stream, recipe, windows)
    heads = _head_sample(recipe, windows)
    r2 = [] if settings.r2.kind == "none" else [_initial_heads(stream, recipe, i) for i in range(stream.num_layers)]
    losses: dict[str, tuple[float, ...]] = {}

    def observers() -> Observers:
        found: Observers = {}
        if pool is not None:
            found |= {site.linears[0]: pool.update for site in stream.architecture.residual_sites}
        if heads is not None:
            found[stream.architecture.output] = heads.update
        return found

    if pool is not None or heads is not None:
        for index in walk(stream, windows, place, observers, progress):
            if heads is not None and isinstance(settings.r2, LearnedRotation):
                samples = head_samples(heads.take(), stream.num_key_value_heads, stream.head_dim)
                learned = learn(samples, r2[index], settings.r2, generator(seed, f"r2 {index} batches"))
                r2[index], losses[f"r2.{index}"] = learned.rotation, learned.losses

    r1: Tensor | None = None
    if settings.r1.kind == "hadamard":
        r1 = random_hadamard(stream.config.hidden_size, generator(seed, "r1"))
    elif pool is not None and isinstance(settings.r1, LearnedRotation):
        with progress.stage("learn R1", 1) as stage:
            start = initial_rotation(settings.r1.init, stream.config.hidden_size, generator(seed, "r1"))
            residual: Learned = learn(pool.take(), start, settings.r1, generator(seed, "r1 batches"))
            r1, losses["r1"] = residual.rotation, residual.losses
            stage.advance()
    return Rotations(r1, tuple(r2), losses)


def walk(
    stream: ModelStream,
    windows: Tensor,
    place: Place,
    observers: Callable[[], Observers],
    progress: Progress,
) -> Iterator[int]:
    """Run the unquantized layers, norms fused, in order; yields each layer's index once its observers have seen it."""
    frontend = stream.frontend(place)
    arguments = frontend.layer_arguments(windows)
    hidden_states = embed(frontend, windows)
    del frontend
    with progress.stage("calibrate", stream.num_layers) as stage:
        for index in range(stream.num_layers):
            layer = stream.layer(index, place)
            fuse_norms(layer, stream.architecture)
            with watching(layer, observers()):
                advance(layer, hidden_states, arguments[index])
            yield index
            stage.advance()


def _residual_sample(stream: ModelStream, recipe: Recipe, windows: Tensor) -> TokenSample | None:
    """The sample that trains R1: its tokens are spread over all layers and residual sites."""
    r1 = recipe.rotations.r1
    if not isinstance(r1, LearnedRotation):
        return None
    visits = windows.numel() * stream.num_layers * len(stream.architecture.residual_sites)
    return TokenSample(r1.num_tokens / visits, generator(recipe.calibration.seed, "r1 sample"))


def _head_sample(recipe: Recipe, windows: Tensor) -> TokenSample | None:
    """The sample that trains one layer's R2."""
    r2 = recipe.rotations.r2
    if not isinstance(r2, LearnedRotation):
        return None
    return TokenSample(r2.num_tokens / windows.numel(), generator(recipe.calibration.seed, "r2 sample"))


def _initial_heads(stream: ModelStream, recipe: Recipe, layer: int) -> Tensor:
    r2 = recipe.rotations.r2
    kind = r2.init if isinstance(r2, LearnedRotation) else "hadamard"
    rng = generator(recipe.calibration.seed, f"r2 {layer}")
    return initial_heads(kind, stream.num_key_value_heads, stream.head_dim, rng)
