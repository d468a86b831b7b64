"""JointQuant: INT4 causal language models by calibrated rotations.

After ``import jointquant``, artifacts load with ``transformers.AutoModelForCausalLM.from_pretrained``.
"""

from jointquant._version import __version__
from jointquant.analysis.compare import Comparison, compare
from jointquant.analysis.stats import Statistics, stats
from jointquant.artifact.result import QuantizeResult
from jointquant.errors import InputError, ResumableError
from jointquant.evaluation.evaluate import EvaluationResult, evaluate
from jointquant.export import ExportResult, export_artifact
from jointquant.pipeline import quantize
from jointquant.planning.dry_run import DryRun, dry_run
from jointquant.recipe.recipe import Recipe, load_recipe
from jointquant.runtime.integration import register_families
from jointquant.runtime.loading import load

register_families()

__all__ = [
    "Comparison",
    "DryRun",
    "EvaluationResult",
    "ExportResult",
    "InputError",
    "QuantizeResult",
    "Recipe",
    "ResumableError",
    "Statistics",
    "__version__",
    "compare",
    "dry_run",
    "evaluate",
    "export_artifact",
    "load",
    "load_recipe",
    "quantize",
    "stats",
]
