"""Opening jobs: the one place where ``quantize``, ``compare`` and ``stats`` find their model, plan, and refuse.

Whatever can refuse refuses here, before any work: the output, the model, recipes that do not fit it, windows, memory
and disk, an unfinished run that is another one, ranks that were given different things.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from jointquant.backend.devices import check_own
from jointquant.backend.memory import return_freed_memory
from jointquant.calibration.windows import calibration_sets
from jointquant.distributed.process_group import joined, spill_folder
from jointquant.distributed.ranks import Ranks, of_leader
from jointquant.errors import ResumableError
from jointquant.files.output import check_output
from jointquant.models.options import ModelOptions
from jointquant.models.overflow import overflow_explained
from jointquant.planning.budget import Limits, base_of, budget_of, check_texts, plan_runs
from jointquant.planning.plan import Budget, Plan
from jointquant.planning.shape import shape_of_model
from jointquant.planning.workload import workloads
from jointquant.progress import Progress, Silent
from jointquant.recipe.recipe import CalibrationSettings, Recipe
from jointquant.run.fitting import assemble, check_windows, fitted
from jointquant.run.group_sizes import with_groups_that_fit
from jointquant.run.identity import check_alike, identity_of
from jointquant.run.job import Job
from jointquant.run.journal import Journal, begun, finished, join_journal, nearly_finished
from jointquant.run.opening import Subject, check_not_input, open_subject
from jointquant.run.workspace import Workspace
from jointquant.text.names import check_source

FARTHEST = ("device", "memory", "disk")
"""Where hidden states may be, from the layers away."""


@dataclass(frozen=True)
class Request:
    """What a verb was asked to do.

    Attributes:
        model: a model folder, a hub id, or a model in memory.
        out: the folder that appears when all is done.
        recipes: by label.
        tokenizer: needed with a model in memory.
        options: how the model is found and opened.
        limits: memory that may be used.
        overwrite: replace a folder that is not empty, and discard an unfinished run that is another one.
        progress: where progress is shown.
        announce: told the largest plan before the work begins.
        besides: what makes the run what it is besides model, recipes and windows; empty for ``quantize``.
        folder: where in the output each recipe's artifact lies, under its label; None: the one recipe fills it.
        verb: whose demand on memory and disk is planned, see ``planning.workload.DEMANDS``.
        measured: tokens of a window that artifacts are measured on, where it is said.
    """

    model: str | Path | PreTrainedModel
    out: Path
    recipes: Mapping[str, Recipe]
    tokenizer: PreTrainedTokenizerBase | None = None
    options: ModelOptions = field(default_factory=ModelOptions)
    limits: Limits = field(default_factory=Limits)
    overwrite: bool = False
    progress: Progress = field(default_factory=Silent)
    announce: Callable[[Plan], None] | None = None
    besides: Mapping[str, Any] = field(default_factory=dict)
    folder: str | None = None
    verb: str = "quantize"
    measured: int = 0


@dataclass(frozen=True)
class OpenJobs:
    """What was opened: the jobs of one verb on one model, which share a journal.

    Attributes:
        subject: the model.
        jobs: by label, in order.
        plans: likewise.
        journal: of the whole run.
        ranks: who shares it.
        report: of a run that was killed when nothing was left to do but to clear up; None: there is work.
    """

    subject: Subject
    jobs: Mapping[str, Job]
    plans: Mapping[str, Plan]
    journal: Journal | None
    ranks: Ranks
    report: dict[str, Any] | None = None

    @property
    def resumed(self) -> bool:
        """Whether a run before had done a part."""
        return self.journal is not None and self.journal.resumed

    @property
    def output(self) -> Path:
        """What becomes the output."""
        assert self.journal is not None
        return self.journal.artifact

    def complete(self, report: dict[str, Any]) -> None:
        """All is done; the output gets its name when the block ends."""
        assert self.journal is not None
        self.journal.complete(report)

    def shared(self, labels: list[str], name: str) -> Workspace:
        """Where several jobs walk together: hidden states as far from the layers as one of them needs them."""
        assert self.journal is not None
        storage = max((self.plans[label].choice.storage for label in labels), key=FARTHEST.index)
        first = self.jobs[labels[0]].workspace
        return replace(first, storage=storage, keep_inner=False, journal=self.journal.part(name))


@contextmanager
def open_jobs(request: Request) -> Iterator[OpenJobs]:
    """Find the model, make the plan, and open the journal: a new one, or that of an unfinished run of the same request.

    When the block ends well, what the jobs wrote gets its name. When it ends badly, finished steps are kept.

    Raises:
        InputError: the input is at fault, or the run does not fit; nothing was written.
    """
    ranks, out, overwrite = joined(), request.out, request.overwrite
    if ranks.leads:
        for recipe in request.recipes.values():
            check_source(recipe.calibration.source)
        check_output(out, overwrite or nearly_finished(out))
    subject = open_subject(request.model, request.tokenizer, request.progress, request.options)
    if ranks.leads:
        check_not_input(out, subject)
    check_own(subject.place.device, ranks.on_host)
    stream = subject.stream
    recipes = {n: fitted(recipe, stream.config) for n, recipe in request.recipes.items()}
    recipes = {n: with_groups_that_fit(recipe, stream.skeleton, stream.architecture) for n, recipe in recipes.items()}
    request = replace(request, recipes=recipes)
    assemblies = {
        label: assemble(stream.skeleton, stream.architecture, recipe) for label, recipe in request.recipes.items()
    }
    budget = budget_of(request.limits, subject.place.device, out, ranks)
    windows = of_leader(ranks, lambda: _windows(request, subject, budget))
    return_freed_memory()  # what tokenizing took
    for settings in windows:
        check_windows(ranks.size, settings)
    plans = planned(request, subject, budget, ranks)
    batch_tokens = next(iter(plans.values())).choice.batch_tokens
    identity = identity_of(subject, request.recipes, windows, batch_tokens, request.besides)
    check_alike(ranks, identity, None if isinstance(subject.model, PreTrainedModel) else Path(subject.model))
    report = of_leader(ranks, lambda: finished(out, identity))
    if report is not None:
        yield OpenJobs(subject, {}, plans, None, ranks, report=report)
        return
    if ranks.leads:
        check_output(out, overwrite)
        if request.announce is not None:
            request.announce(max(plans.values(), key=lambda plan: plan.host_peak))
    with join_journal(out, identity, overwrite, ranks) as journal, spill_folder(ranks) as spill:
        if ranks.leads:
            _check_unchanged(subject, journal)
        jobs = {}
        for label, assembly in assemblies.items():
            part = journal if request.folder is None else journal.part(label, journal.artifact / request.folder / label)
            choice, batch = plans[label].choice, windows[assembly.recipe.calibration]
            workspace = Workspace(
                subject.place, choice.storage, choice.batch_tokens, choice.keep_inner, part.work, part, ranks, spill
            )
            jobs[label] = Job(subject, assembly, batch, workspace, part.artifact, request.progress)
        with overflow_explained(stream, subject.place):
            yield OpenJobs(subject, jobs, plans, journal, ranks)


def _windows(request: Request, subject: Subject, budget: Budget) -> dict[CalibrationSettings, Tensor]:
    """Of every recipe's calibration."""
    texts = dict.fromkeys(recipe.calibration.source for recipe in request.recipes.values())
    check_texts(texts, base_of(subject.place.device), budget)
    return calibration_sets(subject, list(request.recipes.values()), request.progress)


def _check_unchanged(subject: Subject, journal: Journal) -> None:
    """Refuse to go on with a model whose files hold something else than when the run began, whatever their dates."""
    name = subject.stream.stored.changed(journal.read())
    if name is not None:
        raise ResumableError(
            f"tensor {name} of {subject.model} is not what the unfinished run has read: expected the same files (put "
            "them back), another `out`, or `overwrite=True` to begin again"
        )


def planned(request: Request, subject: Subject, budget: Budget, ranks: Ranks) -> dict[str, Plan]:
    """A plan for each recipe."""
    unfinished = of_leader(ranks, lambda: None if request.overwrite else begun(request.out).get("batch_tokens"))
    stream, place, recipes = subject.stream, subject.place, list(request.recipes.values())
    shape = shape_of_model(stream.skeleton, stream.architecture, stream.stored_dtype)
    shape = replace(shape, tied=not stream.own_head)  # whatever the configuration says
    base = base_of(place.device)
    works = workloads(request.verb, recipes, shape, place, base, ranks.size, request.measured)
    return dict(zip(request.recipes, plan_runs(works, budget, unfinished, ranks), strict=True))
