"""What the scripts of other programs share; runs in their environments, with torch alone.

A script is given texts, which it cuts into windows itself, or the windows that JointQuant was given (``--windows``, by
benchmarks/real_model_peers.py), and then it leaves its model's logits on those of the test (``--logits``).
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kept_logits import write_logits
from torch import Tensor


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Model, texts or windows, and sizes."""
    parser.add_argument("model")
    parser.add_argument("--calib", type=Path, help="a text")
    parser.add_argument("--test", type=Path, help="a text: its perplexity is measured")
    parser.add_argument("--num-samples", type=int, default=64)
    parser.add_argument("--seqlen", type=int, default=256)
    parser.add_argument("--windows", type=Path, help="in the place of texts: an .npz of token ids")
    parser.add_argument("--logits", type=Path, help="with --windows: the file for those of the test")


def given_windows(arguments: argparse.Namespace, tokenizer: Any) -> tuple[Tensor, Tensor | None]:
    """Those to calibrate on and those of the test, if any: [n, T] each."""
    if arguments.windows is not None:
        with np.load(arguments.windows) as kept:
            return torch.from_numpy(kept["calibration"]), torch.from_numpy(kept["test"])
    rows = text_windows(tokenizer, arguments.calib, arguments.seqlen)[: arguments.num_samples]
    return rows, None if arguments.test is None else text_windows(tokenizer, arguments.test, arguments.seqlen)


def text_windows(tokenizer: Any, text: Path, seqlen: int) -> Tensor:
    """A text's windows that do not overlap: [n, seqlen]."""
    tokens = torch.tensor(tokenizer(text.read_text(encoding="utf-8")).input_ids)
    return tokens[: len(tokens) // seqlen * seqlen].view(-1, seqlen)


@torch.no_grad()
def perplexity(model: Any, rows: Tensor) -> float:
    """exp of the mean negative log-likelihood of T − 1 predictions a window."""
    total = 0.0
    for batch in rows.split(8):
        logits = model(batch, use_cache=False).logits[:, :-1].float().log_softmax(-1)
        total -= logits.gather(-1, batch[:, 1:, None]).double().sum().item()
    return math.exp(total / rows[:, 1:].numel())


def peak_bytes() -> int:
    """The process's peak resident memory; getrusage would begin with that of the process that started this one."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def report(arguments: argparse.Namespace, model: Any, test: Tensor | None, found: dict[str, Any]) -> None:
    """Leave the logits that were asked for, and print what a script found, with the perplexity, as its last line."""
    if test is not None:
        found["perplexity"] = perplexity(model, test)
    if arguments.logits is not None:
        write_logits(model, test, arguments.logits)
    print(json.dumps(found))
