"""The calibration windows of a recipe, as the model's tokenizer cuts them."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from jointquant.progress import Progress
from jointquant.recipe.recipe import CalibrationSettings, Recipe
from jointquant.run.opening import Subject
from jointquant.text.sources import load_text
from jointquant.text.tokens import tokenize
from jointquant.text.windows import calibration_windows, check_vocabulary


def calibration_sets(
    subject: Subject, recipes: Iterable[Recipe], progress: Progress
) -> dict[CalibrationSettings, Tensor]:
    """The windows of several recipes, once for all that calibrate alike."""
    settings = dict.fromkeys(recipe.calibration for recipe in recipes)
    return {each: calibration_set(subject, each, progress) for each in settings}


def calibration_set(subject: Subject, settings: CalibrationSettings, progress: Progress) -> Tensor:
    """The calibration windows [num_samples, seqlen] of token ids.

    Raises:
        InputError: no such text, one that is too short, or windows and tokens that the model cannot read.
    """
    config = subject.stream.config
    tokens = tokenize(subject.tokenizer, load_text(settings.source, "calibration", progress, subject.tokenizer))
    check_vocabulary(tokens, config.vocab_size)
    return calibration_windows(tokens, settings.num_samples, settings.window, settings.seed, settings.source)
