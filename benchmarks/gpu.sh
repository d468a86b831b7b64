#!/usr/bin/env bash
# All that needs an NVIDIA GPU, in an environment made with pip install -e '.[dev]' and torch's build for the GPU.
# Results: benchmarks/results/*gpu*.json.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Kernels and GPTQ: correct against the reference, on the device instead of in Triton's interpreter.
TRITON_INTERPRET=0 python -m pytest tests/runtime/kernels tests/runtime/test_cache.py tests/quantization/test_gptq_triton.py -q

# Kernels: products at 7B shapes against bfloat16, R4 with quantization.
python benchmarks/gpu_kernels.py

# Calibration at hidden 4096 and 8192, GPTQ at 7B and 70B layer shapes, two layers of 70B shape under a 24 GB cap.
python benchmarks/gpu_calibration.py

# Prefill and decode at 7B shape.
python benchmarks/inference.py --shapes Llama-2-7B --layers 8 --out benchmarks/results/inference_gpu.json
