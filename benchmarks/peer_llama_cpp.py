"""llama.cpp's speed on a GGUF file, for benchmarks/beside_llama_cpp.py; runs where llama-cpp-python is.

Build it for the processor that it runs on: a wheel for all processors, or one without optimisation, says little.

    CMAKE_ARGS="-DGGML_NATIVE=ON" pip install --no-cache-dir --no-binary llama-cpp-python llama-cpp-python

The last line it prints is JSON: tokens a second of the prompt and behind it, and the version.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import llama_cpp


def main() -> None:
    """Measure, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--prompt", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    threads = {"n_threads": arguments.threads, "n_threads_batch": arguments.threads}
    length = arguments.prompt + arguments.steps
    model = llama_cpp.Llama(str(arguments.file), n_ctx=length, n_batch=arguments.prompt, verbose=False, **threads)
    ids = [position * 37 % 2000 for position in range(length)]
    model.eval(ids[: arguments.prompt])  # once to read the file
    model.reset()
    start = time.perf_counter()
    model.eval(ids[: arguments.prompt])
    read = time.perf_counter()
    for token in ids[arguments.prompt :]:
        model.eval([token])
    done = time.perf_counter()
    found = {"prefill": arguments.prompt / (read - start), "decode": arguments.steps / (done - read)}
    print(json.dumps(found | {"version": llama_cpp.__version__}))


if __name__ == "__main__":
    main()
