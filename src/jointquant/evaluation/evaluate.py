"""Evaluate a model or an artifact on texts and tasks, and beside the model that it was made from."""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from typing_extensions import Unpack

from jointquant.backend.launches import failed_launches
from jointquant.backend.memory import Size
from jointquant.distributed.process_group import joined
from jointquant.distributed.ranks import check_size, of_leader
from jointquant.errors import require
from jointquant.evaluation.divergence import Divergence, compare
from jointquant.evaluation.perplexity import perplexity
from jointquant.evaluation.runners import Loaded, Runner, runner_of
from jointquant.evaluation.tasks import Scores, TaskSet
from jointquant.events import OnEvent, reported
from jointquant.hub import locate
from jointquant.models.options import ModelOptions, completed
from jointquant.progress import Progress
from jointquant.run.fitting import DEFAULT_SEQLEN, window_length
from jointquant.run.identity import check_alike, folder_identity
from jointquant.runtime.loading import load_tokenizer
from jointquant.text.hub_text import max_windows
from jointquant.text.names import check_source
from jointquant.text.sources import load_text
from jointquant.text.tokens import tokenize
from jointquant.text.windows import check_vocabulary as check_token_ids
from jointquant.text.windows import evaluation_windows

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluationResult:
    """Perplexity per text, scores per task, and what they were measured on.

    Attributes:
        perplexity: by text.
        tokens: tokens in the windows of all texts.
        seqlen: length of a window.
        seconds: wall time, loading excluded.
        tasks: by task: value by metric.
        divergence: by text, how far the predictions are from the reference's; empty without one.
        failed_launches: programs for GPUs that could not be launched in this process, so that others computed their
            products: ``program``, ``what``, ``reason``.
    """

    perplexity: dict[str, float]
    tokens: int
    seqlen: int
    seconds: float
    tasks: Scores = field(default_factory=dict)
    divergence: dict[str, Divergence] = field(default_factory=dict)
    failed_launches: list[dict[str, str]] = field(default_factory=failed_launches)

    def to_dict(self) -> dict[str, object]:
        """As plain data."""
        return asdict(self)


def evaluate(
    model: str | Path | PreTrainedModel,
    texts: tuple[str, ...] | None = None,
    *,
    reference: str | Path | PreTrainedModel | None = None,
    tasks: tuple[str, ...] = (),
    num_fewshot: int | None = None,
    limit: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    seqlen: int | None = None,
    max_tokens: int | None = None,
    memory_budget: Size = None,
    kernels: str = "reference",
    progress: Progress | None = None,
    on_event: OnEvent | None = None,
    **options: Unpack[ModelOptions],
) -> EvaluationResult:
    """What a model folder, a hub id, an artifact, or a model in memory makes of each of ``texts`` and ``tasks``.

    Args:
        model: what to evaluate.
        texts: sources, as for calibration, for perplexity; None: wikitext2, or none where there are tasks.
        reference: another model over the same vocabulary, as a rule the unquantized one: how far the predictions are
            from its is measured on each text. It is given and opened as ``model`` is.
        tasks: tasks of lm-eval, or task files (.yaml) of its form.
        num_fewshot: solved examples before each question of a task; None: what the task says.
        limit: use only so many questions of each task.
        tokenizer: needed with a model in memory.
        seqlen: length of a window; None: 2048, or the model's positions where there are fewer.
        max_tokens: use only so many tokens of each text.
        memory_budget: bytes that the process may use, or a size such as "16GB"; None: what is free. A model for which
            that is too little runs layer by layer.
        kernels: of an artifact's linears: ``reference``, whose figures are those of the run that made the artifact on
            every machine, or ``auto``, the fastest, which round values on the border of two integers either way.
        progress: where progress is shown; None: a bar on a terminal or in a notebook; ``Silent()``: nowhere.
        on_event: is told what happens (``jointquant.events.OnEvent``); None: nobody is.
        **options: how the model is found and opened, as for ``quantize``.

    Raises:
        InputError: no such model, text or task, a text shorter than one window, tasks without lm-eval, a reference of
            another vocabulary or without a text.
    """
    progress, ranks, given = reported(progress, on_event), joined(), completed(options)
    require(ranks.size == 1 or not tasks, "tasks run in one process: expected one process, or texts alone")
    require(not isinstance(texts, str), f"texts is one string, {texts!r}: expected several, such as ({texts!r},)")
    if texts is None:
        texts = () if tasks else ("wikitext2",)
    for source in texts:
        check_source(source)
    require(seqlen is None or seqlen >= 2, f"seqlen must be at least 2, got {seqlen}")
    require(
        bool(tasks) or (num_fewshot is None and limit is None), "num_fewshot and limit are for tasks: expected some"
    )
    require(reference is None or bool(texts), "a reference is for texts: expected some, or tasks alone")
    task_set = TaskSet(tasks) if tasks else None
    in_memory = isinstance(model, PreTrainedModel)
    require(tokenizer is not None or not in_memory, "a model in memory needs its tokenizer: pass tokenizer=")

    def found(subject: str | Path | PreTrainedModel | None, revision: str | None) -> Path | None:
        if subject is None or isinstance(subject, PreTrainedModel):
            return None
        return locate(subject, revision, given["hub"], progress).folder

    def opened(subject: str | Path | PreTrainedModel, folder: Path | None, next_one: Path | None = None) -> Runner:
        if folder is None:
            assert isinstance(subject, PreTrainedModel)
            return Loaded(subject, ranks)
        runner = runner_of(folder, given, memory_budget, kernels, ranks, next_one)
        check_alike(ranks, folder_identity(ranks, folder), folder)
        return runner

    folder, other = found(model, given["revision"]), found(reference, None)
    runner = opened(model, folder, other)
    if folder is not None:
        tokenizer = tokenizer or load_tokenizer(folder, given["digests"])
    assert tokenizer is not None
    beside = None
    if reference is not None:
        beside = opened(reference, other)
        theirs = None if other is None else load_tokenizer(other, given["digests"])
        check_vocabulary(runner, beside, tokenizer, theirs)
    length = window_length(runner.config, seqlen)
    if length < DEFAULT_SEQLEN and seqlen is None and texts:
        LOG.info("windows have %d tokens, all that the model reads (`seqlen`)", length)
    encoder, sources, vocabulary = tokenizer, texts, runner.config.vocab_size

    def cut() -> dict[str, Tensor]:
        windows = {}
        for source in sources:
            tokens = tokenize(encoder, load_text(source, "evaluation", progress, encoder))
            check_token_ids(tokens, vocabulary)
            windows[source] = evaluation_windows(tokens[:max_tokens], length, source)[: max_windows(source)]
        return windows

    windows = of_leader(ranks, cut)
    for batch in windows.values():
        check_size(ranks.size, len(batch), "evaluation", "`max_tokens`")
    start = time.perf_counter()
    results, divergences = {}, {}
    for name, batch in windows.items():
        results[name], divergence = measured(runner, beside, batch, Path(name).name, progress)
        if divergence is not None:
            divergences[name] = divergence
    scores: Scores = {}
    if task_set is not None:
        require(
            isinstance(runner, Loaded),
            "tasks need the whole model in memory, and it is larger than what is free: expected a larger "
            "`memory_budget`, or texts alone, which runs layer by layer",
        )
        assert isinstance(runner, Loaded)
        scores = task_set.scores(
            runner.model, tokenizer, seqlen=length, num_fewshot=num_fewshot, limit=limit, progress=progress
        )
    count = sum(batch.numel() for batch in windows.values())
    return EvaluationResult(results, count, length, time.perf_counter() - start, scores, divergences)


def measured(
    runner: Runner, reference: Runner | None, windows: Tensor, name: str, progress: Progress
) -> tuple[float, Divergence | None]:
    """The perplexity on windows [n, T] of the text called ``name``, and the divergence from a reference, if any."""
    with ExitStack() as stack:
        what = f"perplexity on {name}"
        session = stack.enter_context(runner.session(windows, what, progress))
        count = len(session.share.part())
        if reference is None:
            stage = stack.enter_context(progress.stage(what, count))
            return perplexity(session.logits, windows, session.at_once, stage.advance, session.share), None
        beside = stack.enter_context(reference.session(windows, f"the reference on {name}", progress))
        stage = stack.enter_context(progress.stage(f"{what}, beside the reference", count))
        at_once = min(session.at_once, beside.at_once)
        return compare(session.logits, beside.logits, windows, at_once, stage.advance, session.share)


def check_vocabulary(
    runner: Runner, reference: Runner, tokenizer: PreTrainedTokenizerBase, theirs: PreTrainedTokenizerBase | None
) -> None:
    """Refuse a reference over other tokens; ``theirs`` is its own tokenizer, where it has one. Raises InputError."""
    sizes = [each.config.vocab_size for each in (runner, reference)]
    require(sizes[0] == sizes[1], f"the reference has a vocabulary of {sizes[1]}, the model one of {sizes[0]}")
    if theirs is not None:
        same = theirs.get_vocab() == tokenizer.get_vocab()
        require(same, f"the tokenizer of the reference, {theirs.name_or_path}, has other tokens than the model's")
