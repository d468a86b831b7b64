"""A comparison at work: candidates calibrated together, quantized, and measured one after another."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from jointquant.analysis.candidates import Candidate
from jointquant.analysis.examples import PART_TOKENS, Besides
from jointquant.analysis.inspection import Inspector
from jointquant.analysis.kept import Keep, KeptRun
from jointquant.analysis.kept_samples import calibrate_on_kept
from jointquant.backend.memory import Size, little_freed_memory_kept, peak_rss_bytes, return_freed_memory
from jointquant.calibration.calibrate import Calibrated, calibrate_together
from jointquant.distributed.ranks import of_leader
from jointquant.evaluation.divergence import Divergence
from jointquant.evaluation.evaluate import EvaluationResult, evaluate
from jointquant.files.digests import digest_of_bytes
from jointquant.files.manifest import write_manifest
from jointquant.job import OpenJobs
from jointquant.models.options import ModelOptions, of_folder
from jointquant.models.source import bytes_of
from jointquant.pipeline import write_artifact
from jointquant.progress import Prefixed, Progress
from jointquant.recipe.recipe import CalibrationSettings
from jointquant.run.job import Job
from jointquant.run.workspace import Workspace


@dataclass(frozen=True)
class Run:
    """One recipe with one seed: by text the perplexity, and the divergence from the unquantized model.

    Seconds are those of ``quantize`` alone, without what the comparison measures; of a recipe that was stopped on its
    way (``resumed``) those of its last part, of one that was ``kept`` by a comparison before those of that one.
    """

    recipe: str
    seed: int
    perplexity: dict[str, float]
    divergence: dict[str, Divergence]
    bits: float
    size_bytes: int
    seconds: float
    peak_rss_bytes: int
    resumed: bool = False
    kept: bool = False

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Run:
        """Of its plain data."""
        return cls(**{**data, "divergence": {text: Divergence(**found) for text, found in data["divergence"].items()}})


@dataclass(frozen=True)
class Protocol:
    """How artifacts are measured; the fields are arguments of ``evaluate``, and what is shown besides."""

    texts: tuple[str, ...]
    seqlen: int | None
    max_tokens: int | None
    memory_budget: Size
    options: ModelOptions
    besides: Besides = field(default_factory=Besides)

    def identity(self) -> dict[str, Any]:
        """What a resumed comparison must have in common with the one that was stopped."""
        texts = {text: _text_digest(text) for text in self.texts}
        asked = {"verb": "compare", "texts": texts, "seqlen": self.seqlen, "max_tokens": self.max_tokens}
        return asked | self.besides.identity()

    def of_parts(self) -> dict[str, Any]:
        """The same for ``loss_by_part``, on the first text."""
        limit = PART_TOKENS if self.max_tokens is None else min(PART_TOKENS, self.max_tokens)
        sizes = {"text": self.texts[0], "seqlen": self.seqlen, "max_tokens": limit}
        return {**of_folder(self.options), **sizes, "memory_budget": self.memory_budget}

    def measure(self, model: str | Path | PreTrainedModel, **others: Any) -> EvaluationResult:
        """What a model or an artifact makes of the texts."""
        return evaluate(
            model,
            self.texts,
            seqlen=self.seqlen,
            max_tokens=self.max_tokens,
            memory_budget=self.memory_budget,
            **of_folder(self.options),
            **others,
        )


class Laboratory:
    """A comparison at work. Each recipe's figures are written into the journal as soon as they are known.

    Args:
        opened: the jobs, by the candidates' names.
        candidates: by name.
        protocol: how each is measured.
        keep_artifacts: whether artifacts stay.
        progress: where progress is shown.
        keep: where artifacts and samples are kept for other comparisons, and taken from; None: nowhere.
    """

    def __init__(
        self,
        opened: OpenJobs,
        candidates: Mapping[str, Candidate],
        protocol: Protocol,
        keep_artifacts: bool,
        progress: Progress,
        keep: Keep | None = None,
    ) -> None:
        assert opened.journal is not None
        self.keep = keep
        self.opened, self.candidates, self.protocol, self.progress = opened, candidates, protocol, progress
        self.keep_artifacts, self.journal, self.subject = keep_artifacts, opened.journal, opened.subject
        self.inspected: set[str] = set()

    def remembered(self, stage: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Plain data that a run before has written down, or that is made now and written down."""
        entries = self.journal.entries(stage)
        if entries:
            return entries[-1].facts
        facts = make()
        self.journal.record(stage, 0, [], facts)
        return facts

    def measure_reference(self) -> dict[str, Any]:
        """The unquantized model's figures, and facts about the evaluation."""
        besides, subject = self.protocol.besides, self.subject
        besides.check_room(subject, self.protocol.memory_budget)
        progress = Prefixed(self.progress, "unquantized")
        measured = self.protocol.measure(self.subject.model, tokenizer=self.subject.tokenizer, progress=progress)
        figures = {
            "perplexity": measured.perplexity,
            "bits": 8.0 * self.subject.stream.stored_dtype.itemsize,
            "size_bytes": bytes_of(self.subject.stream.source),
            "generations": besides.written(subject.model, subject.tokenizer, self.protocol.options),
        }
        return {"figures": figures, "facts": {"tokens": measured.tokens, "seqlen": measured.seqlen}}

    def measured(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Each candidate's name and what was found, those that calibrate alike behind each other."""
        groups: dict[tuple[CalibrationSettings, bool], list[str]] = {}
        for name, candidate in self.candidates.items():
            groups.setdefault(candidate.recipe.walk, []).append(name)
        for number, names in enumerate(groups.values()):
            done = {name: self.journal.entries(f"{name}/measured") for name in names}
            kept = {name: self.kept(name) for name in names if not done[name]}
            rotations = self.calibrated([name for name, run in kept.items() if run is None], number)
            for name in names:
                run = kept.get(name)
                found = done[name][-1].facts if done[name] else self.again(name, run) if run else None
                found = self.run(name, rotations[name]) if found is None else found
                self.inspected |= {self.candidates[name].label} if found["details"] else set()
                yield name, found

    def kept(self, name: str) -> KeptRun | None:
        """What a comparison before has kept of a candidate; None: nothing that it would be."""
        keep, job = self.keep, self.opened.jobs[name]
        return None if keep is None else of_leader(job.ranks, lambda: keep.find(name, job))

    def again(self, name: str, kept: KeptRun) -> dict[str, Any]:
        """A candidate whose artifact was kept: it is measured, and nothing else."""
        candidate, job = self.candidates[name], self.job(name)
        found = self.protocol.measure(kept.artifact, reference=self.subject.model, progress=job.progress)
        details = kept.facts["details"] | self.shown_besides(kept.artifact, job.progress)
        return_freed_memory()
        run = replace(Run.from_dict(kept.facts["run"]), perplexity=found.perplexity, divergence=found.divergence)
        run = replace(run, recipe=candidate.label, seed=candidate.seed, resumed=False, kept=True)
        facts = {"run": asdict(run), "details": details}
        self.journal.record(f"{name}/measured", 0, [], job.ranks.tell(facts))
        return facts

    @little_freed_memory_kept()
    def calibrated(self, names: list[str], number: int) -> dict[str, Calibrated]:
        """Pass 1 of several candidates in one walk; what they come to is in their own parts of the journal then."""
        if not names:
            return {}
        seed = self.candidates[names[0]].seed
        progress = Prefixed(self.progress, f"{len(names)} recipes (seed {seed})")
        jobs, used = {name: self.job(name) for name in names}, []

        def shared(labels: list[str], kind: str) -> Workspace:
            workspace = self.opened.shared(labels, f"{kind}-{number}")
            assert workspace.journal is not None
            used.append(workspace.journal.work)
            return workspace

        if self.keep is not None and self.opened.ranks.size == 1:  # other ranks need not see the folder
            found = calibrate_on_kept(jobs, self.keep, shared, progress)
        else:
            found = calibrate_together(list(jobs.values()), shared(names, "walk"), progress, watch_layers=True)
        return_freed_memory()  # samples and steps of training lie between what stays
        self.journal.record(f"walk-{number}/over", 0, [], {}, used)
        return dict(zip(names, found, strict=True))

    def job(self, name: str) -> Job:
        """A candidate's job, whose progress names it."""
        candidate = self.candidates[name]
        progress = Prefixed(self.progress, f"{candidate.label} (seed {candidate.seed})")
        return replace(self.opened.jobs[name], progress=progress)

    def run(self, name: str, calibrated: Calibrated) -> dict[str, Any]:
        """Pass 2 of a candidate, and how good its artifact is; details of the first seed of each recipe."""
        candidate, rotations = self.candidates[name], calibrated.rotations
        job = self.job(name)
        resumed = bool(self.journal.entries(f"{name}/quantize"))
        inspector = None
        if candidate.label not in self.inspected or self.keep is not None:  # another comparison may show this one
            inspector = Inspector(job.stream, job.assembly, rotations, job.windows, job.place)
        besides = inspector.seconds if inspector else 0.0
        start = time.perf_counter()
        with little_freed_memory_kept():
            written = write_artifact(job, rotations, inspector)
        seconds = calibrated.seconds + time.perf_counter() - start - (inspector.seconds - besides if inspector else 0.0)
        peak = max(job.ranks.ask(peak_rss_bytes()))  # asked of all: the artifact is there when they have answered
        words = {"transforms": written.transforms, "undone": written.undone}
        details = {} if inspector is None else _details(calibrated, inspector) | words
        inspector = None  # it holds the last layer
        return_freed_memory()
        found = self.protocol.measure(job.artifact, reference=self.subject.model, progress=job.progress)
        if details:
            details |= self.shown_besides(job.artifact, job.progress)
        return_freed_memory()
        figures = found.perplexity, found.divergence, written.bits_per_weight, written.size_bytes
        run = Run(candidate.label, candidate.seed, *figures, seconds, peak, resumed)
        facts = {"run": asdict(run), "details": details}
        assert job.workspace.journal is not None
        if self.keep is not None and job.ranks.leads:
            self.keep.put(name, job, facts)
        folders = [job.workspace.journal.work, *([] if self.keep_artifacts else [job.artifact])]
        left: list[Path] = []
        if self.keep_artifacts and job.ranks.leads:
            write_manifest(job.artifact)
            left = sorted(path for path in job.artifact.rglob("*") if path.is_file())
        self.journal.record(f"{name}/measured", 0, left, facts, folders)
        return facts

    def shown_besides(self, artifact: Path, progress: Progress) -> dict[str, Any]:
        """What an artifact writes, and which of its parts lose how much; empty where nobody asked."""
        besides, subject = self.protocol.besides, self.subject
        return {
            "generations": besides.written(artifact, subject.tokenizer, self.protocol.options),
            "parts": besides.losses(artifact, subject, self.protocol.of_parts(), progress),
        }


def _text_digest(source: str) -> str:
    """A fingerprint of a text file; a hub's text goes by its name."""
    name, _, field = source.rpartition(":")
    path = Path(name if field and Path(name).is_file() else source)
    return digest_of_bytes(path.read_bytes()) if path.is_file() else ""


def _details(calibrated: Calibrated, inspector: Inspector) -> dict[str, Any]:
    traces, losses = calibrated.rotations.traces, calibrated.layer_losses
    return {
        "traces": {name: trace.to_dict() for name, trace in traces.items()},
        "layer_losses": {} if losses is None else losses.to_dict(),
        "spreads": [asdict(spread) for spread in inspector.spreads],
        "errors": [asdict(error) for error in inspector.errors],
    }
