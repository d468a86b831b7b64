"""JointQuant: INT4 causal language models by calibrated rotations.

After ``import jointquant``, artifacts load with ``transformers.AutoModelForCausalLM.from_pretrained``. What the package
offers is imported when it is first named: torch and transformers take seconds, and not every command needs them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from jointquant._version import __version__
from jointquant.runtime.registration import register_when_imported

if TYPE_CHECKING:
    from jointquant.analysis.capture import CaptureResult, capture
    from jointquant.analysis.compare import Comparison, compare
    from jointquant.analysis.rotate import RotateResult, rotate
    from jointquant.analysis.rotation_facts import describe_rotations
    from jointquant.analysis.stats import Statistics, stats
    from jointquant.artifact.result import QuantizeResult
    from jointquant.errors import InputError, ResumableError
    from jointquant.evaluation.evaluate import EvaluationResult, evaluate
    from jointquant.evaluation.parts import Losses, loss_by_part
    from jointquant.export.draft import DraftResult, rotate_draft
    from jointquant.export.export import ExportResult, export_artifact
    from jointquant.pipeline import quantize
    from jointquant.planning.dry_run import DryRun, dry_run
    from jointquant.progress import Silent
    from jointquant.recipe.recipe import Recipe, load_recipe
    from jointquant.runtime.generation import Generation, generate_text
    from jointquant.runtime.loading import load
    from jointquant.tuning.settings import TuneSettings
    from jointquant.tuning.tune import TuneResult, tune
    from jointquant.verification.verdict import Verdict
    from jointquant.verification.verify import verify

__all__ = [
    "CaptureResult",
    "Comparison",
    "DraftResult",
    "DryRun",
    "EvaluationResult",
    "ExportResult",
    "Generation",
    "InputError",
    "Losses",
    "QuantizeResult",
    "Recipe",
    "ResumableError",
    "RotateResult",
    "Silent",
    "Statistics",
    "TuneResult",
    "TuneSettings",
    "Verdict",
    "__version__",
    "capture",
    "compare",
    "describe_rotations",
    "dry_run",
    "evaluate",
    "export_artifact",
    "generate_text",
    "load",
    "load_recipe",
    "loss_by_part",
    "quantize",
    "rotate",
    "rotate_draft",
    "stats",
    "tune",
    "verify",
]

_HOMES = {
    "CaptureResult": "analysis.capture",
    "Comparison": "analysis.compare",
    "DraftResult": "export.draft",
    "DryRun": "planning.dry_run",
    "EvaluationResult": "evaluation.evaluate",
    "ExportResult": "export.export",
    "Generation": "runtime.generation",
    "InputError": "errors",
    "Losses": "evaluation.parts",
    "QuantizeResult": "artifact.result",
    "Recipe": "recipe.recipe",
    "ResumableError": "errors",
    "RotateResult": "analysis.rotate",
    "Silent": "progress",
    "Statistics": "analysis.stats",
    "TuneResult": "tuning.tune",
    "TuneSettings": "tuning.settings",
    "Verdict": "verification.verdict",
    "capture": "analysis.capture",
    "compare": "analysis.compare",
    "describe_rotations": "analysis.rotation_facts",
    "dry_run": "planning.dry_run",
    "evaluate": "evaluation.evaluate",
    "export_artifact": "export.export",
    "generate_text": "runtime.generation",
    "load": "runtime.loading",
    "load_recipe": "recipe.recipe",
    "loss_by_part": "evaluation.parts",
    "quantize": "pipeline",
    "rotate": "analysis.rotate",
    "rotate_draft": "export.draft",
    "stats": "analysis.stats",
    "tune": "tuning.tune",
    "verify": "verification.verify",
}
"""The module of each name, below the package."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register_when_imported()
