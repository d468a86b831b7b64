"""JointQuant: INT4 causal language models by calibrated rotations.

After ``import jointquant``, artifacts load with ``transformers.AutoModelForCausalLM.from_pretrained``.
"""

from jointquant._version import __version__
from jointquant.errors import InputError
from jointquant.evaluation.evaluate import EvaluationResult, evaluate
from jointquant.pipeline import QuantizeResult, quantize
from jointquant.recipe import Recipe, load_recipe
from jointquant.runtime.integration import register_families
from jointquant.runtime.loading import load

register_families()

__all__ = [
    "EvaluationResult",
    "InputError",
    "QuantizeResult",
    "Recipe",
    "__version__",
    "evaluate",
    "load",
    "load_recipe",
    "quantize",
]
