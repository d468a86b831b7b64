"""Training what an artifact stores: the loss is how far its predictions are from those of the model it was made of.

Source: Chen et al., "EfficientQAT" (arXiv 2407.11062, section 3.3), whose second phase trains the scales of the whole
model at once, on the words of a text; here every part that is stored may be trained, and the loss is that of
distillation, KL(p‖q), which says of each token what the model made of all words that might have come.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from jointquant.progress import Stage
from jointquant.seeds import generator, rounds
from jointquant.tuning.kept import Kept
from jointquant.tuning.learned import PARTS, Learned
from jointquant.tuning.settings import TuneSettings, share_of_rate

BETAS = (0.9, 0.95)
"""Of Adam: over few steps a longer memory of squares would still be of the first ones."""


def train(
    learned: Learned,
    models: tuple[PreTrainedModel, PreTrainedModel],
    windows: Tensor,
    settings: TuneSettings,
    kept: Kept,
    stage: Stage,
) -> list[float]:
    """Train the parts of an artifact that have a rate, in place, from the last step that was kept on.

    Args:
        learned: the artifact's parts.
        models: the artifact, in training, and the unquantized model.
        windows: token ids [n, T].
        settings: how.
        kept: where the state is kept from time to time.
        stage: told each step.

    Returns:
        The divergence of each step's windows, in nats a token.

    Raises:
        ResumableError: the disk is full.
    """
    artifact, model = models
    parts = [(rate, PARTS[part](learned)) for part, rate in settings.rates.items()]
    groups = [{"params": parameters, "height": rate} for rate, parameters in parts if parameters]
    _want_gradients(learned, [each for _, parameters in parts for each in parameters])
    optimizer = torch.optim.Adam(groups, betas=BETAS, fused=True)
    num_steps = steps_of(settings, windows)
    draws = rounds(len(windows), batch_windows(settings, windows), generator(settings.seed, "tuning"))
    kept.restore(optimizer)
    losses = list(kept.losses)
    for _ in losses:
        next(draws)
    stage.advance(len(losses))
    for step in range(len(losses), num_steps):
        batch = windows[next(draws)].to(artifact.device)
        with torch.no_grad():
            expected = log_predictions(model, batch)
        loss = functional.kl_div(log_predictions(artifact, batch), expected, reduction="batchmean", log_target=True)
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = group["height"] * share_of_rate(step, num_steps)
        optimizer.step()
        learned.after_step()
        losses.append(loss.item())
        kept.keep_when_due(optimizer, losses)
        stage.advance()
    return losses


def batch_windows(settings: TuneSettings, windows: Tensor) -> int:
    """Windows [n, T] of a step."""
    return min(len(windows), max(1, settings.batch_tokens // windows.shape[1]))


def steps_of(settings: TuneSettings, windows: Tensor) -> int:
    """Steps over windows [n, T]."""
    return settings.epochs * (len(windows) // batch_windows(settings, windows))


def log_predictions(model: PreTrainedModel, windows: Tensor) -> Tensor:
    """Windows [n, T] → log-probabilities [n · T, vocabulary], in float32 at least."""
    scores: Tensor = model(input_ids=windows, use_cache=False).logits.flatten(0, 1)
    return scores.to(torch.promote_types(scores.dtype, torch.float32)).log_softmax(-1)


def _want_gradients(learned: Learned, wanted: list[Tensor]) -> None:
    """Let those parts alone be trained."""
    chosen = {id(each) for each in wanted}
    for parameters in PARTS.values():
        for each in parameters(learned):
            each.requires_grad_(id(each) in chosen)
