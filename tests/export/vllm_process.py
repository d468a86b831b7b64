"""Runs in vLLM's own environment: what vLLM makes of some folders, one after the other, in one process.

Reads from standard input a JSON list of jobs ``{"folder", "windows", "options"}``, the windows as lists of token ids;
writes to the file that it is given a JSON object: ``stand_ins``, the kernels that plain torch stood in for, and
``found``, of each job the log-probabilities of its tokens, or the reason why vLLM refuses the folder.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # errors come up here, and one process serves all folders
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_PLUGINS": os.environ.get("VLLM_PLUGINS", ""),
}
if not os.environ["VLLM_PLUGINS"]:
    sys.modules["jointquant"] = None  # type: ignore[assignment]  # stock vLLM, which must do without

import torch
from vllm import LLM, SamplingParams
from vllm_kernels import stand_in


def log_probabilities(job: dict[str, Any]) -> list[list[float]]:
    """[windows, T − 1], of each token after the first one of its window."""
    windows: list[list[int]] = job["windows"]
    longest = max(map(len, windows))
    options = {"dtype": "float32", "enforce_eager": True, "max_num_seqs": 8, "enable_prefix_caching": False}
    options |= {"max_model_len": longest + 2, "max_num_batched_tokens": 1024, "disable_log_stats": True}
    model = LLM(model=job["folder"], **(options | job.get("options", {})))
    asked = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
    answers = model.generate([{"prompt_token_ids": window} for window in windows], asked, use_tqdm=False)
    return [
        [answer.prompt_logprobs[place][token].logprob for place, token in enumerate(window) if place]
        for answer, window in zip(answers, windows, strict=True)
    ]


def main(out: Path) -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    stood_in, found = stand_in(), []
    for job in json.load(sys.stdin):
        try:
            found.append(log_probabilities(job))
        except Exception as error:  # whatever vLLM raises is what is asked for
            found.append(f"{type(error).__name__}: {error}")
    out.write_text(json.dumps({"stand_ins": stood_in, "found": found}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    sys.stdout.flush()
    os._exit(0)  # vLLM's threads would keep it
