"""How much the command line says besides its answer: notes, progress, and what libraries print of their own accord."""

from __future__ import annotations

import logging
import os
import sys

from jointquant.cli.flags import as_flags
from jointquant.distributed.launch import leads
from jointquant.errors import printable

ENVIRONMENT = {
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TORCH_CPP_LOG_LEVEL": "ERROR",  # a peer that is gone is said in our words, not in frames of C++
}
"""What libraries read when they are imported; what a user has set stays."""

LOG = logging.getLogger("jointquant")


class OneLine(logging.Formatter):
    """``note: what is said``, on one line."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        return f"note: {as_flags(printable(record.getMessage()))}"


class ToStandardError(logging.Handler):
    """Writes to what standard error is at that time; of several ranks one does."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        if leads() or record.levelno >= logging.WARNING:
            print(self.format(record), file=sys.stderr)


def speak(level: int = logging.INFO) -> None:
    """Show what the package logs from ``level`` on."""
    if not any(isinstance(handler, ToStandardError) for handler in LOG.handlers):
        handler = ToStandardError()
        handler.setFormatter(OneLine())
        LOG.addHandler(handler)
    LOG.setLevel(level)


def is_quiet() -> bool:
    """Whether neither progress nor plans are to be shown."""
    return LOG.level > logging.INFO


def silence_libraries() -> None:
    """Silence their bars and advice, of those that are imported already and of those that will be."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if "huggingface_hub" in sys.modules:
        from huggingface_hub.utils import logging as hub_logging
        from huggingface_hub.utils.tqdm import disable_progress_bars

        disable_progress_bars()
        hub_logging.set_verbosity_error()
    if "transformers" in sys.modules:
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()
