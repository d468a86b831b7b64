"""Logits in a file: a model says in one process and environment what it predicts, another process measures it.

So all models are measured by one function, ``jointquant.evaluation.divergence.compare``, whichever program quantized
them. Needs NumPy and torch alone.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

AT_ONCE = 2048
"""Tokens that a model is given at once."""


@torch.no_grad()
def write_logits(model: Callable[..., object], windows: Tensor, path: Path) -> None:
    """What a model of transformers predicts on windows [n, T]: float32 [n, T, vocabulary] at ``path`` (.npy)."""
    file, done = None, 0
    for batch in windows.split(max(1, AT_ONCE // windows.shape[1])):
        logits = model(batch, use_cache=False).logits.float()  # type: ignore[attr-defined]
        if file is None:
            shape = (*windows.shape, logits.shape[-1])
            file = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
        file[done : done + len(batch)] = logits.numpy()
        done += len(batch)
    assert file is not None
    file.flush()


class KeptLogits:
    """Those of a file, as a model: called with batches of the windows from the first to the last, as ``compare`` does.

    Args:
        path: what ``write_logits`` has written.
    """

    def __init__(self, path: Path) -> None:
        self._file = np.load(path, mmap_mode="r")
        self._done = 0

    def __call__(self, batch: Tensor) -> Tensor:
        """[batch, T] token ids → [batch, T, vocabulary]."""
        start, self._done = self._done, self._done + len(batch)
        return torch.from_numpy(np.array(self._file[start : self._done]))
