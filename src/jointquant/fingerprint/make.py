"""A fingerprint is made by one walk over the layers of what was written: in memory are a layer or two, or an end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from jointquant.backend.memory import return_freed_memory
from jointquant.errors import OverflowedError
from jointquant.fingerprint.arithmetic import ARITHMETICS, noise_of
from jointquant.fingerprint.probe import TEXT, probe_of
from jointquant.fingerprint.record import Fingerprint, rounded, save_fingerprint
from jointquant.fingerprint.variants import Variants, log_probabilities
from jointquant.models.architecture import Architecture
from jointquant.models.frontend import Frontend
from jointquant.models.layer import Place, run_layer
from jointquant.models.stream import ModelStream
from jointquant.progress import Progress, Silent
from jointquant.rotations.bundle import ROTATIONS_NAME, Rotations
from jointquant.runtime.artifact_digests import renew_digests
from jointquant.runtime.embedding import PackedEmbedding
from jointquant.runtime.kernels.choices import use_kernels
from jointquant.runtime.streaming import ArtifactStream
from jointquant.trust.folder import FINGERPRINT_NAME

PLACE = Place(torch.device("cpu"), torch.float32)
"""Where fingerprints are computed, wherever the model is run: the figures are the same everywhere."""

ROWS_AT_ONCE = 4
"""Variants whose scores over the vocabulary are in memory at once."""

DISTINCT = 1e-3
"""A fault that moves log-probabilities by less, as the root of the mean square, changes nothing."""


class WrittenStream(ArtifactStream):
    """An artifact whose model has run already, as one has that was just made."""

    def try_out(self, architecture: Architecture) -> None:
        """It has been."""


def give_fingerprint(folder: Path, tokenizer: PreTrainedTokenizerBase, progress: Progress) -> None:
    """Write the fingerprint of a whole artifact into it; its digests vouch for that, too.

    Args:
        folder: the artifact, as it was written.
        tokenizer: its own.
        progress: where the walk over its layers is shown.

    Raises:
        ResumableError: the disk is full.
    """
    save_fingerprint(folder / FINGERPRINT_NAME, fingerprint_of_artifact(folder, tokenizer, progress))
    renew_digests(folder)


def fingerprint_of_artifact(
    folder: Path, tokenizer: PreTrainedTokenizerBase, progress: Progress | None = None
) -> Fingerprint:
    """What an artifact is to predict. Raises InputError when it is not what was written."""
    stream, path = WrittenStream(folder, "check"), folder / ROTATIONS_NAME
    rotations = Rotations.load(path) if path.is_file() else Rotations()
    dense = stream.architecture.mixture is None  # tokens of experts come without the row that they are of
    with (progress or Silent()).stage("fingerprint", stream.num_layers) as stage:
        return fingerprint_of(stream, rotations, tokenizer, stream.r4 and dense, stage.advance)


@torch.no_grad()
def fingerprint_of(
    stream: ModelStream,
    rotations: Rotations,
    tokenizer: PreTrainedTokenizerBase,
    r4: bool = False,
    after_layer: Callable[[], None] = lambda: None,
) -> Fingerprint:
    """What a model is to predict, and what it would with each fault.

    Args:
        stream: its layers.
        rotations: that are merged into it, or will be.
        tokenizer: its own.
        r4: whether the input of its down projections is rotated online.
        after_layer: called when the probe has passed a layer.

    Raises:
        OverflowedError: its scores are not finite.
    """
    config, r1 = stream.config, rotations.r1_of(0)
    probe = probe_of(tokenizer, config.vocab_size, getattr(config, "max_position_embeddings", None))
    tokens, variants = torch.tensor(probe.tokens), Variants.of(r1, rotations.r1_of(-1), r4)
    use_kernels(stream.skeleton, "reference")
    scores = _walked(stream, variants, tokens, after_layer)
    if not scores.isfinite().all():
        raise OverflowedError("what the artifact predicts of its probe text is not finite: its activations overflowed")
    expected, moved = scores[0], root_mean_square(scores - scores[0])
    of_roundings = moved[1 : 1 + len(variants.roundings)].tolist()
    noise = noise_of(of_roundings[: len(ARITHMETICS)], of_roundings[len(ARITHMETICS) :])
    predictions = zip(variants.faults, range(1 + len(of_roundings), len(scores)), strict=True)
    faults = {name: rounded(scores[row].tolist()) for name, row in predictions if moved[row] > DISTINCT}
    return Fingerprint(
        text=TEXT,
        text_tokens=probe.text_tokens,
        chat=probe.chat,
        tokens=probe.tokens,
        log_probabilities=rounded(expected.tolist()),
        noise={name: _few_digits(moved) for name, moved in zip(ARITHMETICS, noise, strict=True)},
        faults=faults,
    )


def root_mean_square(differences: Tensor) -> Tensor:
    """Over the last dimension: [..., n] → [...]."""
    return differences.square().mean(-1).sqrt()


def _few_digits(number: float) -> float:
    """Three significant digits: more would say what nobody measured."""
    return float(f"{number:.3g}")


def _walked(stream: ModelStream, variants: Variants, tokens: Tensor, after_layer: Callable[[], None]) -> Tensor:
    """The log-probabilities of all variants: [rows, T − 1]."""
    frontend = stream.frontend(PLACE)
    arguments = frontend.layer_arguments(tokens[None])
    states = variants.started(frontend.hidden_states(tokens[None]))
    del frontend
    for index, layer in stream.layers(PLACE):
        with variants.installed(layer, stream.architecture_of(index), stream.head_dim):
            states = run_layer(layer, states, arguments[index])
        del layer
        return_freed_memory()
        after_layer()
    states = variants.ended(stream.final_norm(PLACE)(states))
    head = stream.head(PLACE)
    scores = _scored(head, states, stream, tokens)
    del head
    return_freed_memory()
    tied = [row for row, fault in variants.rows() if fault.tied]
    frontend = stream.frontend(PLACE)
    scores[tied] = _scored(lambda x: x @ _embedding(frontend, stream).T, states[tied], stream, tokens)
    return scores


def _scored(head: Callable[[Tensor], Tensor], states: Tensor, stream: ModelStream, tokens: Tensor) -> Tensor:
    """What a head makes of states [rows, T, hidden]: log-probabilities [rows, T − 1]."""
    mapped = stream.architecture.logits.of(stream.config)
    return torch.cat([log_probabilities(mapped(head(some)), tokens) for some in states.split(ROWS_AT_ONCE)])


def _embedding(frontend: Frontend, stream: ModelStream) -> Tensor:
    """The token embedding [vocabulary, hidden], as a head that is tied to it has it."""
    module = frontend.module(stream.architecture.embeddings[0])
    if isinstance(module, PackedEmbedding):
        return module.rows(torch.arange(module.num_embeddings))
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight
