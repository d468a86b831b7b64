"""Evaluate a model or an artifact on texts."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from jointquant.errors import require
from jointquant.evaluation.perplexity import Logits, perplexity
from jointquant.hub import locate
from jointquant.progress import Progress, Silent
from jointquant.runtime.loading import load, load_tokenizer
from jointquant.text.hub_text import max_windows
from jointquant.text.sources import load_text
from jointquant.text.windows import evaluation_windows, tokenize

DEFAULT_SEQLEN = 2048


@dataclass(frozen=True)
class EvaluationResult:
    """Perplexity per text, and what it was measured on.

    Attributes:
        perplexity: by text.
        tokens: tokens in the windows of all texts.
        seqlen: length of a window.
        seconds: wall time, loading excluded.
    """

    perplexity: dict[str, float]
    tokens: int
    seqlen: int
    seconds: float

    def to_dict(self) -> dict[str, object]:
        """As plain data."""
        return asdict(self)


def evaluate(
    model: str | Path | PreTrainedModel,
    texts: tuple[str, ...] = ("wikitext2",),
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    revision: str | None = None,
    hub: str = "hf",
    seqlen: int | None = None,
    max_tokens: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    progress: Progress | None = None,
) -> EvaluationResult:
    """Perplexity of a model folder, a hub id, an artifact, or a model in memory on each of ``texts``.

    Args:
        model: what to evaluate.
        texts: sources, as for calibration.
        tokenizer: needed with a model in memory.
        revision: branch, tag or commit of a hub id.
        hub: ``hf`` or ``modelscope``.
        seqlen: length of a window; None: 2048, or the model's positions where there are fewer.
        max_tokens: use only so many tokens of each text.
        device: "auto" is the accelerator if there is one.
        dtype: "auto" is float32 on the CPU and the stored dtype elsewhere.
        progress: where progress is shown; None: nowhere.

    Raises:
        InputError: no such model or text, or a text shorter than one window.
    """
    progress = progress or Silent()
    if isinstance(model, PreTrainedModel):
        require(tokenizer is not None, "a model in memory needs its tokenizer: pass tokenizer=")
        loaded = model
    else:
        model = locate(model, revision, hub, progress).folder
        tokenizer = tokenizer or load_tokenizer(model)
        loaded = load(model, device=device, dtype=dtype)
    assert tokenizer is not None
    limit = getattr(loaded.config, "max_position_embeddings", None) or DEFAULT_SEQLEN
    length = seqlen or min(DEFAULT_SEQLEN, limit)
    require(length >= 2, f"seqlen must be at least 2, got {length}")
    require(length <= limit, f"seqlen {length} is longer than the model's {limit} positions")
    windows = {}
    for source in texts:
        tokens = tokenize(tokenizer, load_text(source, "evaluation", progress))
        windows[source] = evaluation_windows(tokens[:max_tokens], length, source)[: max_windows(source)]
    start = time.perf_counter()
    results = {}
    for source, batch in windows.items():
        with progress.stage(f"perplexity on {Path(source).name}", len(batch)) as stage:
            results[source] = perplexity(_logits(loaded), batch, max(1, 4096 // length), stage.advance)
    count = sum(batch.numel() for batch in windows.values())
    return EvaluationResult(results, count, length, time.perf_counter() - start)


def _logits(model: PreTrainedModel) -> Logits:
    """The model as a function from token ids to logits."""

    def logits(input_ids: Tensor) -> Tensor:
        return model(input_ids=input_ids.to(model.device), use_cache=False).logits

    return logits
