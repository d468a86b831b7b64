"""What a run will need, before it starts: memory phase by phase, room on disk, time; and what is chosen to make it fit.

Peaks are sums over what is in memory together. The factors below were fitted to measurements on CPUs
(``benchmarks/memory.py`` prints both); everything else follows from the sizes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch

from jointquant.devices import elements_at_once
from jointquant.errors import InputError
from jointquant.hidden_states import TOKENS_PER_BATCH, micro_batch
from jointquant.memory import words
from jointquant.recipe import LearnedResidualRotation, LearnedRotation, Recipe
from jointquant.shape import ModelShape
from jointquant.workspace import Storage

FLOAT = 4
DOUBLE = 8
LEARNING_MATRICES = 12
"""Square float32 matrices that a step of an optimiser holds at once."""
LAYER_ACTIVATIONS = 6
"""Copies of the widest activation while a layer of floating-point inputs runs."""
QUANTIZED_ACTIVATIONS = 9
"""The same where inputs are rotated and quantized."""
ROUNDING_COPIES = 6
"""Copies of a part of a weight in float32 while it is rounded."""
TRAINED_COPIES = 10
"""Copies of a layer's weights in float32 while their rounding is learned: starts, offsets, gradients, what is kept."""
TRAINED_ACTIVATIONS = 40
"""Copies of the widest activation that a step keeps for its gradients."""
FACTOR_COPIES = 3
"""Matrices of a Hessian's size besides it while its factor is computed."""

Bytes = dict[str, int]


@dataclass(frozen=True)
class Job:
    """What a plan is for.

    Attributes:
        shape: of the model.
        recipe: all settings.
        num_windows: calibration windows.
        seqlen: tokens of a window.
        dtype: layers compute in.
        device: where layers run; its memory is the host's on a CPU.
        base: bytes of the process before it starts.
    """

    shape: ModelShape
    recipe: Recipe
    num_windows: int
    seqlen: int
    dtype: torch.dtype
    device: torch.device
    base: int

    @property
    def tokens(self) -> int:
        """Of all windows."""
        return self.num_windows * self.seqlen

    @property
    def states(self) -> int:
        """Bytes of the hidden states of all windows; where rounding is refined, of the unquantized model's too."""
        copies = 2 if self.refined else 1
        return copies * self.tokens * self.shape.hidden_size * self.dtype.itemsize

    @property
    def refined(self) -> bool:
        """Whether rounding is learned."""
        return self.recipe.refinement.steps > 0

    @property
    def step_tokens(self) -> int:
        """Tokens of a step of refinement: whole windows, one at least."""
        return max(1, self.recipe.refinement.batch_tokens // self.seqlen) * self.seqlen

    @property
    def on_host(self) -> bool:
        """Whether layers run in the host's memory."""
        return self.device.type == "cpu"


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
    """What a plan chooses: where hidden states are kept, and how many tokens run at once."""

    storage: Storage
    batch_tokens: int


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
            "batch_windows": self.batch_windows,
            "host_peak_bytes": self.host_peak,
            "device_peak_bytes": self.device_peak,
            "disk_bytes": self.disk_total,
            "phases": [{"name": p.name, "host": p.host, "device": p.device} for p in self.phases],
            "disk": self.disk,
            "budget": {"host": self.budget.host, "device": self.budget.device, "disk": self.budget.disk},
        }


def make_plan(job: Job, budget: Budget, batch_tokens: int | None = None) -> Plan:
    """The first choice that fits: hidden states as near to the layers as there is room, then smaller batches.

    Args:
        job: what is to be done.
        budget: what may be used.
        batch_tokens: given by a run that is resumed: results depend on it in their last digits.

    Raises:
        InputError: nothing fits; names what is short, by how much, and what would fit.
    """
    plans = [plan_of(job, choice, budget) for choice in choices(job, batch_tokens)]
    for plan in plans:
        if not shortages(plan):
            return plan
    raise InputError(f"this run does not fit: {'; '.join(shortages(plans[-1]))}, expected {advice(job, budget)}")


def choices(job: Job, batch_tokens: int | None) -> Iterator[Choice]:
    """From the fastest to the smallest."""
    near: tuple[Storage, ...] = ("device",) if job.on_host else ("device", "memory")
    most = batch_tokens or TOKENS_PER_BATCH
    for storage in (*near, "disk"):
        yield Choice(storage, most)
    if batch_tokens is None:
        tokens = most // 2
        while tokens >= job.seqlen:
            yield Choice("disk", tokens)
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


def advice(job: Job, budget: Budget) -> str:
    """What would fit, tried out."""
    trials: list[tuple[str, Job]] = []
    for seqlen in (job.seqlen // 2, job.seqlen // 4):
        if seqlen >= 128:
            trials.append((f"--seqlen {seqlen}", replace(job, seqlen=seqlen)))
    for windows in (job.num_windows // 2, job.num_windows // 4):
        if windows >= 1:
            trials.append((f"--num-samples {windows}", replace(job, num_windows=windows)))
    weights = job.recipe.weights.model_copy(update={"method": "rtn"})
    trials.append(("--set weights.method=rtn", replace(job, recipe=job.recipe.model_copy(update={"weights": weights}))))
    for word, trial in trials:
        if any(not shortages(plan_of(trial, choice, budget)) for choice in choices(trial, None)):
            return f"a larger budget, or {word}"
    return "a larger budget, more room, or a smaller model"


def plan_of(job: Job, choice: Choice, budget: Budget) -> Plan:
    """The needs of one choice."""
    batch_windows = micro_batch(job.seqlen, choice.batch_tokens)
    batch = min(batch_windows, job.num_windows) * job.seqlen
    phases = tuple(_placed(job, choice, phase) for phase in phases_of(job, batch))
    return Plan(choice, batch_windows, phases, disk_of(job), budget)


@dataclass(frozen=True)
class Needs:
    """A phase's bytes by kind, wherever they will be: what layers compute with, and what the host keeps anyway."""

    name: str
    computing: Bytes
    keeping: Bytes


def phases_of(job: Job, batch: int) -> Iterator[Needs]:
    """What each phase needs besides the process itself and the hidden states.

    Args:
        job: the run.
        batch: tokens that run at once.
    """
    shape, recipe, width, stored = job.shape, job.recipe, job.dtype.itemsize, job.shape.dtype.itemsize
    activation = batch * max(shape.intermediate_size, 2 * shape.hidden_size) * width
    layer, ahead = {"layer": shape.layer * width}, {"next layer": shape.layer * stored}
    samples = sample_bytes(job)
    yield Needs("embeddings", {"embeddings": shape.embeddings * width}, {"as stored": 3 * shape.embeddings * stored})
    if samples:
        yield Needs("calibrate a layer", layer | {"activations": LAYER_ACTIVATIONS * activation} | samples, ahead)
        yield Needs("learn R1", learning_bytes(job) | samples, {})
    hessians = hessian_bytes(job)
    quantized = (QUANTIZED_ACTIVATIONS if recipe.activations.enabled else LAYER_ACTIVATIONS) * activation
    sums = {"Hessians": sum(hessians)} if hessians else {}
    yield Needs("run a layer", layer | {"activations": quantized} | sums | rotation_bytes(job), ahead)
    part = min(elements_at_once(job.device), max(site.in_features * site.out_features for site in shape.sites))
    rounding = {"rounding": ROUNDING_COPIES * part * FLOAT}
    if hessians:
        factor = {"Hessians": sum(hessians), "factor": FACTOR_COPIES * max(hessians)}
        yield Needs("factorise", layer | factor | rotation_bytes(job), ahead)
        rounding |= {"Hessians": sum(hessians), "factor": max(hessians)}
    yield Needs("round", layer | rounding | rotation_bytes(job), ahead)
    if job.refined:
        yield Needs("refine", refinement_bytes(job) | rotation_bytes(job), ahead)
    yield Needs("head", {"head": shape.head * width}, {"as stored": 3 * shape.head * stored})


def _placed(job: Job, choice: Choice, needs: Needs) -> Phase:
    """A phase with the process and the hidden states, on the host and on the device."""
    base, states = {"process": job.base}, {"hidden states": job.states}
    walking = needs.name != "learn R1"
    if job.on_host:
        held = states if choice.storage == "device" and walking else {}
        return Phase(needs.name, base | held | needs.computing | needs.keeping)
    host = base | (states if choice.storage == "memory" and walking else {}) | needs.keeping
    return Phase(needs.name, host, (states if choice.storage == "device" and walking else {}) | needs.computing)


def sample_bytes(job: Job) -> Bytes:
    """Sampled tokens of R1, kept over all layers, and of one layer's R2."""
    r1, r2 = job.recipe.rotations.r1, job.recipe.rotations.r2
    found: Bytes = {}
    if isinstance(r1, LearnedResidualRotation):
        visits = job.tokens * job.shape.num_layers * 2
        found["samples for R1"] = min(r1.num_tokens, visits) * job.shape.hidden_size * FLOAT
    if isinstance(r2, LearnedRotation):
        heads = next(site.in_features for site in job.shape.sites if site.name == "o_in")
        found["sample for R2"] = 2 * min(r2.num_tokens, job.tokens) * heads * FLOAT
    return found


def learning_bytes(job: Job) -> Bytes:
    """What a step of R1's training holds."""
    r1, size = job.recipe.rotations.r1, job.shape.hidden_size
    if not isinstance(r1, LearnedResidualRotation):
        return {}
    return {"training": LEARNING_MATRICES * size * size * FLOAT + 4 * r1.batch_tokens * size * FLOAT}


def refinement_bytes(job: Job) -> Bytes:
    """What a step of refinement holds: two layers, the rounding of one, and what gradients need; or the head's."""
    shape, width = job.shape, job.dtype.itemsize
    widest = job.step_tokens * max(shape.intermediate_size, 2 * shape.hidden_size) * width
    logits = 4 * job.step_tokens * (shape.head // shape.hidden_size) * FLOAT
    return {
        "two layers": max(2 * shape.layer, shape.layer + shape.head) * width,
        "rounding": TRAINED_COPIES * shape.linears * FLOAT,
        "activations": max(2 * TRAINED_ACTIVATIONS * widest, TRAINED_ACTIVATIONS * widest + logits),
    }


def rotation_bytes(job: Job) -> Bytes:
    """R1 and all R2 in float64."""
    shape, rotations = job.shape, job.recipe.rotations
    r1 = DOUBLE * shape.hidden_size**2 if rotations.r1.kind != "none" else 0
    if isinstance(rotations.r1, LearnedResidualRotation) and rotations.r1.per_layer:
        r1 *= shape.num_layers
    r2 = DOUBLE * shape.num_layers * shape.num_key_value_heads * shape.head_dim**2
    return {"rotations": r1 + (r2 if rotations.r2.kind != "none" else 0)}


def hessian_bytes(job: Job) -> list[int]:
    """Of each site whose linears are rounded with GPTQ."""
    weights = job.recipe.weights
    if not weights.enabled or weights.method != "gptq":
        return []
    return [FLOAT * site.in_features**2 for site in job.shape.sites]


def disk_of(job: Job) -> Bytes:
    """What lies beside the output folder while the run lasts; the artifact stays."""
    shape, stored = job.shape, job.shape.dtype.itemsize
    bits = job.recipe.weights.num_bits if job.recipe.weights.enabled else 8 * stored
    linears = shape.num_layers * shape.linears * bits // 8
    rest = (shape.embeddings + shape.head) * stored
    return {
        "artifact": linears + rest,
        "hidden states, twice": 2 * job.states,
        "samples and rotations": sum(sample_bytes(job).values()) + sum(rotation_bytes(job).values()),
    }


def in_words(plan: Plan) -> Mapping[str, str]:
    """The plan in words, by what each line is about."""
    place = {"device": "beside the layers", "memory": "in the host's memory", "disk": "in files"}[plan.choice.storage]
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
