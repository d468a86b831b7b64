"""The calibration windows of a recipe, as the model's tokenizer cuts them."""

from __future__ import annotations

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from jointquant.errors import require
from jointquant.models.stream import ModelStream
from jointquant.progress import Progress
from jointquant.recipe.recipe import Recipe
from jointquant.run.fitting import check_positions
from jointquant.text.sources import load_text
from jointquant.text.windows import calibration_windows, tokenize


def calibration_set(
    stream: ModelStream, tokenizer: PreTrainedTokenizerBase, recipe: Recipe, progress: Progress
) -> Tensor:
    """The calibration windows [num_samples, seqlen] of token ids."""
    settings = recipe.calibration
    check_positions(stream.config, settings)
    text = load_text(settings.source, "calibration", progress)
    tokens = tokenize(tokenizer, text)
    vocabulary = stream.config.vocab_size
    require(int(tokens.max()) < vocabulary, f"the tokenizer has ids beyond the model's vocabulary of {vocabulary}")
    return calibration_windows(tokens, settings.num_samples, settings.seqlen, settings.seed, settings.source)
