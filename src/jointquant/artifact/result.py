"""What a run of ``quantize`` did."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from jointquant.backend.launches import failed_launches


@dataclass(frozen=True)
class QuantizeResult:
    """What a run did.

    Attributes:
        artifact: the folder.
        seconds: wall time, per stage and in total.
        peak_rss_bytes: the process's peak resident memory; of several ranks, the largest.
        size_bytes: bytes of all tensors of the artifact.
        original_bytes: the same of the model.
        bits_per_weight: bits per parameter of the decoder's linears, scales included.
        transforms: what R1 to R4 are, in words, and the basis changes between layers where each has an R1.
        tier: where the artifact loads (see ``artifact.tiers``): 1 anywhere, 2 where R4 can run, 3 with this package.
        runtimes: who can run it, in words, each with the export it takes.
        quantized_weights: how many weights are quantized.
        kept: the parameters that are not, nor merged into others: ``name`` (* for numbers), ``parameters``, ``why``.
        starved_experts: ``layer``, ``expert`` and ``tokens`` of experts that too few calibration tokens reached; their
            statistics were taken on all tokens of their layer.
        resumed: whether a run before had done a part; the seconds are those of this one alone.
        failed_launches: programs for GPUs that could not be launched in this process, so that others did their work:
            ``program``, ``what``, ``reason``.
    """

    artifact: str
    seconds: float
    stage_seconds: dict[str, float]
    peak_rss_bytes: int
    size_bytes: int
    original_bytes: int
    bits_per_weight: float
    transforms: dict[str, str]
    tier: int
    runtimes: list[str]
    quantized_weights: int
    kept: list[dict[str, Any]]
    starved_experts: list[dict[str, Any]]
    resumed: bool = False
    failed_launches: list[dict[str, str]] = field(default_factory=failed_launches)

    def to_dict(self) -> dict[str, object]:
        """As plain data."""
        return asdict(self)
