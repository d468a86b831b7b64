"""What is chosen to make a run fit: where hidden states are kept, and how many tokens run at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from jointquant.activations.hidden_states import micro_batch
from jointquant.backend.devices import tokens_at_once
from jointquant.backend.memory import words
from jointquant.errors import InputError
from jointquant.planning.needs import Bytes, Needs, disk_of, phases_of
from jointquant.planning.workload import Workload
from jointquant.run.workspace import Storage


@dataclass(frozen=True)
class Budget:
    """Bytes that may be used; None: unknown, and nothing is refused.

    Attributes:
        host: by the process, its libraries included.
        device: on the accelerator.
        disk: free where the artifact is written.
    """

    host: int | None = None
    device: int | None = None
    disk: int | None = None


@dataclass(frozen=True)
class Choice:
    """What a plan chooses: where hidden states are kept, how many tokens run at once, and whether the inputs of a
    layer's down projection are kept beside the states rather than made again.
    """

    storage: Storage
    batch_tokens: int
    keep_inner: bool = False


@dataclass(frozen=True)
class Phase:
    """Bytes by kind that are in memory together, on the host and on the device."""

    name: str
    host: Bytes
    device: Bytes = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """A run that fits.

    Attributes:
        choice: where and in what pieces.
        batch_windows: windows in flight.
        phases: in order.
        disk: bytes by kind, beside the output folder.
        budget: what it was made to fit.
    """

    choice: Choice
    batch_windows: int
    phases: tuple[Phase, ...]
    disk: Bytes
    budget: Budget

    @property
    def host_peak(self) -> int:
        """Bytes of the largest phase on the host."""
        return max(sum(phase.host.values()) for phase in self.phases)

    @property
    def device_peak(self) -> int:
        """Bytes of the largest phase on the device; 0 where layers run on the host."""
        return max(sum(phase.device.values()) for phase in self.phases)

    @property
    def disk_total(self) -> int:
        """Bytes on disk while the run lasts."""
        return sum(self.disk.values())

    def to_dict(self) -> dict[str, object]:
        """As plain data."""
        return {
            "storage": self.choice.storage,
            "batch_tokens": self.choice.batch_tokens,
            "keep_inner": self.choice.keep_inner,
            "batch_windows": self.batch_windows,
            "host_peak_bytes": self.host_peak,
            "device_peak_bytes": self.device_peak,
            "disk_bytes": self.disk_total,
            "phases": [{"name": p.name, "host": p.host, "device": p.device} for p in self.phases],
            "disk": self.disk,
            "budget": {"host": self.budget.host, "device": self.budget.device, "disk": self.budget.disk},
        }


def make_plan(work: Workload, budget: Budget, batch_tokens: int | None = None) -> Plan:
    """The first choice that fits: hidden states as near to the layers as there is room, then smaller batches.

    Args:
        work: what is to be done.
        budget: what may be used.
        batch_tokens: given by a run that is resumed: results depend on it in their last digits.

    Raises:
        InputError: nothing fits; names what is short, by how much, and what would fit.
    """
    plans = [plan_of(work, choice, budget) for choice in choices(work, batch_tokens)]
    for plan in plans:
        if not shortages(plan):
            return plan
    raise InputError(f"this run does not fit: {'; '.join(shortages(plans[-1]))}, expected {advice(work, budget)}")


def choices(work: Workload, batch_tokens: int | None) -> Iterator[Choice]:
    """From the fastest to the smallest."""
    near: tuple[Storage, ...] = ("device",) if work.on_host else ("device", "memory")
    most = batch_tokens or tokens_at_once(work.device)
    kept = [True, False] if work.inner and work.on_host else [False]  # sooner read than made again, by a processor
    if work.inner:
        yield Choice("device", most, keep_inner=True)
    yield from (Choice(storage, most) for storage in near)
    yield from (Choice("disk", most, keep) for keep in kept)
    if batch_tokens is None:
        tokens = most // 2
        while tokens >= work.seqlen:
            yield from (Choice("disk", tokens, keep) for keep in kept)
            tokens //= 2


def shortages(plan: Plan) -> list[str]:
    """What the plan needs beyond its budget, in words."""
    needs = (
        ("host memory", plan.host_peak, plan.budget.host),
        ("device memory", plan.device_peak, plan.budget.device),
        ("disk", plan.disk_total, plan.budget.disk),
    )
    return [
        f"{what} of {words(need)} at least, and there are {words(have)}"
        for what, need, have in needs
        if have is not None and need > have
    ]


def advice(work: Workload, budget: Budget) -> str:
    """What would fit, tried out."""
    trials: list[tuple[str, Workload]] = []
    if work.refined:
        refinement = work.recipe.refinement.model_copy(update={"steps": 0})
        plain = work.recipe.model_copy(update={"refinement": refinement})
        trials.append(("`refinement.steps=0`", replace(work, recipe=plain)))
    for seqlen in (work.seqlen // 2, work.seqlen // 4):
        if seqlen >= 128:
            trials.append((f"`seqlen={seqlen}`", replace(work, seqlen=seqlen)))
    for windows in (work.num_windows // 2, work.num_windows // 4):
        if windows >= 1:
            trials.append((f"`num_samples={windows}`", replace(work, num_windows=windows)))
    weights = work.recipe.weights.model_copy(update={"method": "rtn"})
    trials.append(("`weights.method=rtn`", replace(work, recipe=work.recipe.model_copy(update={"weights": weights}))))
    for word, trial in trials:
        if any(not shortages(plan_of(trial, choice, budget)) for choice in choices(trial, None)):
            return f"a larger budget, or {word}"
    return "a larger budget, more room, or a smaller model"


def plan_of(work: Workload, choice: Choice, budget: Budget) -> Plan:
    """The needs of one choice."""
    batch_windows = micro_batch(work.seqlen, choice.batch_tokens)
    batch = min(batch_windows, work.num_windows) * work.seqlen
    phases = tuple(_placed(work, choice, phase) for phase in phases_of(work, batch))
    spilled = work.beside + (work.inner if choice.keep_inner else 0) if choice.storage == "disk" else 0
    return Plan(choice, batch_windows, phases, disk_of(work, spilled), budget)


def _placed(work: Workload, choice: Choice, needs: Needs) -> Phase:
    """A phase with the process and the hidden states, on the host and on the device."""
    base, states = {"process": work.base}, {"hidden states": work.states}
    if choice.keep_inner:
        states["inputs of down projections"] = work.inner
    walking = needs.name != "learn R1"
    if work.on_host:
        held = states if choice.storage == "device" and walking else {}
        return Phase(needs.name, base | held | needs.computing | needs.keeping)
    host = base | (states if choice.storage == "memory" and walking else {}) | needs.keeping
    return Phase(needs.name, host, (states if choice.storage == "device" and walking else {}) | needs.computing)


def in_words(plan: Plan) -> Mapping[str, str]:
    """The plan in words, by what each line is about."""
    place = {"device": "beside the layers", "memory": "in the host's memory", "disk": "in files"}[plan.choice.storage]
    if plan.choice.keep_inner:
        place += ", and what a layer's down projection reads"
    lines = {"hidden states": place, "windows at once": f"{plan.batch_windows} ({plan.choice.batch_tokens} tokens)"}
    for what, peak in (("host", plan.host_peak), ("device", plan.device_peak)):
        for phase in plan.phases:
            kinds = phase.host if what == "host" else phase.device
            if kinds and sum(kinds.values()) == peak:
                parts = ", ".join(f"{kind} {words(size)}" for kind, size in kinds.items() if size)
                lines[f"{what} memory"] = f"{words(peak)} ({phase.name}: {parts})"
                break
    lines["disk"] = f"{words(plan.disk_total)} ({', '.join(f'{k} {words(v)}' for k, v in plan.disk.items())})"
    return lines
