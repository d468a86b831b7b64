"""The verb that trains what an artifact stores, all layers at once, until its predictions are nearer to its model's."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from typing_extensions import Unpack

from jointquant.backend.devices import resolve_device
from jointquant.backend.memory import Size, peak_rss_bytes
from jointquant.errors import require
from jointquant.evaluation.divergence import Divergence
from jointquant.evaluation.evaluate import measured
from jointquant.evaluation.pair import Pair
from jointquant.evaluation.runners import Loaded
from jointquant.events import OnEvent, reported
from jointquant.export.artifact import Artifact
from jointquant.files.digests import digest_of_tensors
from jointquant.files.output import check_output
from jointquant.fingerprint.make import give_fingerprint
from jointquant.models.options import ModelOptions, completed
from jointquant.models.stream import ModelStream
from jointquant.progress import Progress
from jointquant.recipe.recipe import CalibrationSettings, calibration_changes, load_recipe
from jointquant.run.fitting import window_length
from jointquant.run.identity import digest_of_json, identity_of_model, versions
from jointquant.run.journal import finished, nearly_finished, open_journal
from jointquant.runtime.artifact_facts import TUNED, TunedFact
from jointquant.runtime.linear import PackedLinear
from jointquant.runtime.loading import load_tokenizer
from jointquant.text.sources import load_text
from jointquant.text.tokens import tokenize
from jointquant.text.windows import calibration_windows, check_vocabulary, held_out_windows
from jointquant.trust.target import check_apart
from jointquant.tuning.kept import Kept
from jointquant.tuning.learned import in_training
from jointquant.tuning.settings import HELD_OUT, TuneSettings
from jointquant.tuning.train import steps_of, train
from jointquant.tuning.write import write_tuned

BYTES_OF_A_WEIGHT = 3 * 4
"""Of a quantized weight in training: dequantized, and where its scales are of groups, scaled and its gradient."""


@dataclass(frozen=True)
class TuneResult:
    """What was trained, and what it brought.

    Attributes:
        artifact: the folder.
        windows: that were trained on.
        seqlen: tokens of a window.
        losses: the divergence of each step's windows, in nats a token.
        before: of the artifact that was given, on windows of the same text that nothing was trained on.
        after: of the one that was written, on the same windows.
        seconds: wall time.
        peak_rss_bytes: the process's peak resident memory.
    """

    artifact: str
    windows: int
    seqlen: int
    losses: list[float]
    before: Divergence
    after: Divergence
    seconds: float
    peak_rss_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TuneResult:
        """Of its plain data."""
        return cls(**data | {name: Divergence(**data[name]) for name in ("before", "after")})


@dataclass(frozen=True)
class Text:
    """Windows of one text [n, T]: those that are trained on, and others that judge."""

    source: str
    trained: Tensor
    held_out: Tensor


def tune(
    artifact: str | Path,
    model: str | Path,
    out: str | Path,
    *,
    settings: TuneSettings | None = None,
    calib: str | Path | None = None,
    num_samples: int | None = None,
    seqlen: int | None = None,
    memory_budget: Size = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    on_event: OnEvent | None = None,
    **options: Unpack[ModelOptions],
) -> TuneResult:
    """Train scales, biases and input ranges of an artifact by its divergence from its model; write it.

    Quantizing looks at a layer at a time, and an error of one that another makes up for counts as two there. Here the
    whole model is in memory beside the unquantized one, and what counts is what both predict. The result is an artifact
    of the same recipe, size and speed. A run that was stopped goes on with the same call, on a CPU to the same bytes.

    Args:
        artifact: a folder that ``quantize`` wrote.
        model: the folder or hub id that it was made of.
        out: a new folder; it appears only when it is complete.
        settings: what is trained, how long and how fast; None: the defaults.
        calib: the text to train on, as for ``quantize``; None: what it was calibrated on, as for the next two.
        num_samples: how many windows of it.
        seqlen: tokens of a window.
        memory_budget: bytes that the process may use, or a size such as "16GB"; None: what is free.
        overwrite: replace an earlier output that is there.
        progress: where progress is shown.
        on_event: is told what happens (``jointquant.events.OnEvent``); None: nobody is.
        **options: how the model is found and opened, as for ``quantize``.

    Raises:
        InputError: no such artifact, model or text; both do not fit into memory; no weight can be trained; or the
            trained artifact is no nearer to its model than before: nothing is written then.
        ResumableError: the disk is full; what is done is kept.
    """
    start, given, target = time.perf_counter(), completed(options), Path(out)
    settings, progress = settings or TuneSettings(), reported(progress, on_event)
    check_apart(target, Path(artifact))
    check_output(target, overwrite or nearly_finished(target))
    opened = Artifact.open(Path(artifact), given["digests"] or "check")
    pair = Pair.open(artifact, model, given, memory_budget, progress, training_bytes)
    tokenizer = load_tokenizer(pair.artifact, given["digests"])
    changes = calibration_changes(calib, num_samples, seqlen)
    text = _text(pair, tokenizer, load_recipe(opened.recipe, changes).calibration, progress)
    identity = _identity(opened, pair, text, settings)
    report = finished(target, identity)
    if report is not None:
        return TuneResult.from_dict(report)
    check_output(target, overwrite)
    with open_journal(target, identity, overwrite) as journal:
        models = pair.load()
        before = divergence_of(models, text.held_out, "held-out windows before", progress)
        losses, tensors = _trained(opened, models, text, settings, Kept(journal), progress)
        _take(models[0], tensors)
        after = divergence_of(models, text.held_out, "held-out windows after", progress)
        require(
            after.mean < before.mean,
            f"trained on {len(text.trained)} windows, the artifact is {after.mean:.4f} nats from its model on others, "
            f"and was {before.mean:.4f} before: nothing was written, expected more windows (`num_samples`) or lower "
            "rates",
        )
        write_tuned(opened, tensors, _facts(opened, text, settings, before, after), journal.artifact)
        give_fingerprint(journal.artifact, tokenizer, progress)
        windows, seqlen = text.trained.shape
        seconds = time.perf_counter() - start
        result = TuneResult(str(out), windows, seqlen, losses, before, after, seconds, peak_rss_bytes())
        journal.complete(result.to_dict())
    return result


def _facts(
    opened: Artifact, text: Text, settings: TuneSettings, before: Divergence, after: Divergence
) -> dict[str, Any]:
    """What the configuration says of this training and of those before."""
    windows, seqlen = text.trained.shape
    fact = TunedFact(
        text=text.source,
        windows=windows,
        seqlen=seqlen,
        epochs=settings.epochs,
        rates=settings.rates,
        kl_before=before.mean,
        kl_after=after.mean,
    )
    return {TUNED: [*opened.quantization.facts.get(TUNED, []), fact.model_dump()]}


def _identity(opened: Artifact, pair: Pair, text: Text, settings: TuneSettings) -> dict[str, Any]:
    """What a run is: it goes on where it was only if all of this is the same."""
    return {
        "verb": "tune",
        "artifact": {**opened.stored.identity(), "config": digest_of_json(opened.data)},
        "model": identity_of_model(pair.reference),
        "text": text.source,
        "windows": digest_of_tensors({"trained": text.trained, "held_out": text.held_out}),
        "settings": asdict(settings),
        "device": resolve_device(pair.options["device"]).type,
        "dtype": pair.options["dtype"],
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }


def _text(pair: Pair, tokenizer: PreTrainedTokenizerBase, calibration: CalibrationSettings, progress: Progress) -> Text:
    """The windows that an artifact was calibrated on, or that are asked for, and some that were not drawn for it."""
    source, count, seed = calibration.source, calibration.num_samples, calibration.seed
    tokens = tokenize(tokenizer, load_text(source, "calibration", progress, tokenizer))
    check_vocabulary(tokens, pair.stream.config.vocab_size)
    length = window_length(pair.stream.config, calibration.window)
    trained = calibration_windows(tokens, count, length, seed, source)
    return Text(source, trained, held_out_windows(tokens, count, length, seed, source, HELD_OUT))


def _trained(
    opened: Artifact,
    models: tuple[PreTrainedModel, PreTrainedModel],
    text: Text,
    settings: TuneSettings,
    kept: Kept,
    progress: Progress,
) -> tuple[list[float], dict[str, Tensor]]:
    """Train an artifact in memory, which is as before then. Returns the losses, and what is to be stored."""
    for model in models:
        model.requires_grad_(False)
    with (
        in_training(models[0], opened.architecture.layers) as learned,
        progress.stage("tune", steps_of(settings, text.trained)) as stage,
    ):
        require(bool(learned.linears), f"{opened.folder} has no packed weights: expected some of 2 to 8 bits")
        losses = train(learned, models, text.trained, settings, kept, stage)
        found = learned.tensors()
    return losses, {n: tensor.to(opened.stored.kind(n)).cpu() for n, tensor in found.items()}


def _take(model: PreTrainedModel, tensors: dict[str, Tensor]) -> None:
    """Put what is stored into an artifact in memory."""
    unknown = model.load_state_dict(tensors, strict=False).unexpected_keys
    assert not unknown, f"no such tensors: {unknown}"


def divergence_of(
    models: tuple[PreTrainedModel, PreTrainedModel], windows: Tensor, name: str, progress: Progress
) -> Divergence:
    """How far an artifact's predictions are from its model's on windows [n, T]."""
    _, found = measured(Loaded(models[0]), Loaded(models[1]), windows, name, progress)
    assert found is not None
    return found


def training_bytes(stream: ModelStream) -> int:
    """What training an artifact takes besides it and its model."""
    packed = (module for module in stream.skeleton.modules() if isinstance(module, PackedLinear))
    return BYTES_OF_A_WEIGHT * sum(each.in_features * each.out_features for each in packed)
