"""What libraries print of their own accord: progress is ours to show."""

from __future__ import annotations

import os
import sys

ENVIRONMENT = {
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
}
"""What they read when they are imported; what a user has set stays."""


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
        from transformers.utils import logging

        logging.disable_progress_bar()
