"""What works for a family, and why something does not: read off its data, without torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jointquant.models.architecture import Architecture

NO_WINDOWS = "models without sliding windows"
EXPERTS_EVERYWHERE = "models whose layers all have experts"

GGUF_FAMILIES = {
    "exaone4": NO_WINDOWS,
    "gemma2": "head and embedding in 16 bits, for they are one matrix there",
    "gemma3_text": "",
    "glm": "",
    "glm4": "",
    "granite": "",
    "llama": "",
    "mistral": "",
    "mixtral": "",
    "olmo2": "",
    "phi3": "",
    "qwen2": "",
    "qwen2_moe": EXPERTS_EVERYWHERE,
    "qwen3": "",
    "qwen3_moe": EXPERTS_EVERYWHERE,
    "smollm3": "",
}
"""Families that GGUF export knows the tensors and hyperparameters of, each with what it is limited to."""

GGUF_TIED = ("gemma2",)
"""Those of them whose head is the embedding in llama.cpp."""

UNTRIED_IN_VLLM = "exports of the family have not been run in vLLM yet"
NOT_IN_VLLM = {
    "cohere2": UNTRIED_IN_VLLM,
    "gemma2": "vLLM's class of the family has no head apart from the embedding, and an export has one",
    "opt": UNTRIED_IN_VLLM,
    "starcoder2": UNTRIED_IN_VLLM,
}
"""Families whose exports vLLM does not load, or was not seen to load, each with the reason."""


@dataclass(frozen=True)
class Support:
    """Whether something works for a family.

    Attributes:
        works: whether it does at all.
        why: the reason where it does not, or what is left out where it does; empty where nothing is.
    """

    works: bool
    why: str = ""

    @property
    def word(self) -> str:
        """``yes``, ``in part`` or ``no``."""
        return ("in part" if self.why else "yes") if self.works else "no"


def _r1(family: Architecture) -> Support:
    if not family.writer_norms:
        return Support(True)
    norms = ", ".join(family.writer_norms)
    return Support(False, f"what layers add to the residual stream is scaled channel by channel ({norms}); use R2 - R4")


def _r2(family: Architecture) -> Support:
    if family.gated_values is None:
        return Support(True)
    return Support(False, f"the family {family.gated_values}; use R1, R3 and R4")


def _r3(family: Architecture) -> Support:
    if not family.latent_sites:
        return Support(True)
    return Support(True, "the rotary part of the keys, where it is cached; latents have a rotation that is merged")


def _always(_: Architecture) -> Support:
    return Support(True)


def _centring(family: Architecture) -> Support:
    absolute = family.absolute_scores
    if family.latent_sites:
        return Support(True, "inputs; neither keys nor values, for the family caches latents, of which both are made")
    if family.gated_values is not None:
        return Support(True, f"inputs and keys; not values, for the family {family.gated_values}")
    if absolute is None:
        return Support(True)
    if not absolute.sums_to_one:
        return Support(True, f"inputs; neither keys nor values, for the family {absolute.why}")
    where = f", where {absolute.key} is set" if absolute.key else ""
    return Support(True, f"inputs and values; not keys, for the family {absolute.why}{where}")


def _gguf(family: Architecture) -> Support:
    limits = GGUF_FAMILIES.get(family.model_type)
    return Support(False, "export does not know its tensors") if limits is None else Support(True, limits)


def _compressed(family: Architecture) -> Support:
    if family.norm.subtracts_mean:
        return Support(True, f"without R1: with it {lost_norms(family.model_type)}")
    if lost := lost_packed(family):
        return Support(False, lost)
    if family.mixture is not None:
        return Support(True, "weights alone, symmetric: experts' inputs stay in 16 bits, so no R4")
    if family.model_type in NOT_IN_VLLM:
        return Support(True, "no R4, which vLLM alone computes")
    return Support(True)


def _vllm(family: Architecture) -> Support:
    if family.model_type in NOT_IN_VLLM:
        return Support(False, NOT_IN_VLLM[family.model_type])
    found = _compressed(family)
    return Support(found.works, "as compressed-tensors, which it reads") if found.why else found


COLUMNS: dict[str, Callable[[Architecture], Support]] = {
    "R1": _r1,
    "R2": _r2,
    "R3": _r3,
    "R4": _always,
    "centring": _centring,
    "GGUF": _gguf,
    "compressed-tensors": _compressed,
    "vLLM": _vllm,
}
"""By name: what of a family's data decides."""


def support_of(family: Architecture) -> dict[str, Support]:
    """What works for a family, by the names of ``COLUMNS``."""
    return {name: decide(family) for name, decide in COLUMNS.items()}


def lost_norms(model_type: str) -> str:
    """Why the artifact of a family whose norms subtract the mean has no export for other runtimes, if R1 is in it."""
    return f"{model_type}'s LayerNorms have become RMSNorms, which no other runtime has in this family"


def lost_packed(family: Architecture) -> str:
    """Why packed weights of a family load in no other runtime; empty where they do."""
    name, mixture = family.model_type, family.mixture
    if mixture is not None and mixture.fused.stored:
        why = f"{name}'s experts are one tensor in checkpoints, and no runtime reads integers there"
        return f"{why}; export --format dense"
    return ""


def support_table(families: dict[str, Architecture], summaries: dict[str, str]) -> list[str]:
    """The lines of the table of families, in Markdown, and below it every reason, with the families it holds for.

    Args:
        families: by ``model_type``.
        summaries: what is special about each.
    """
    lines = [f"| `model_type` | what is special | {' | '.join(COLUMNS)} |", "|-" * (len(COLUMNS) + 2) + "|"]
    for model_type in sorted(families):
        words = [found.word for found in support_of(families[model_type]).values()]
        lines.append(f"| `{model_type}` | {summaries[model_type]} | {' | '.join(words)} |")
    return [*lines, "", *(f"- {reason}" for reason in reasons(families))]


def reasons(families: dict[str, Architecture]) -> list[str]:
    """Each reason once: the column, the families, the words."""
    found: dict[tuple[str, str], list[str]] = {}
    for model_type in sorted(families):
        for name, support in support_of(families[model_type]).items():
            if support.why:
                own = support.why.replace(model_type, "the family")
                found.setdefault((name, own), []).append(model_type)
    return [f"{name}, {', '.join(those)}: {why}." for (name, why), those in found.items()]
