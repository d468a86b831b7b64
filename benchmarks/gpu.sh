#!/usr/bin/env bash
# All that needs an NVIDIA GPU, in an environment made with pip install -e '.[dev]' and torch's build for the GPU.
# Stages do not depend on each other: one that fails, or takes longer than it may, is reported, and the next one runs.
# A stage that lacks what it measures ends with status 77, says what is missing, and counts as skipped.
# Results: benchmarks/results/*gpu*.json; what became of each stage: benchmarks/results/gpu_stages.json.
#   benchmarks/gpu.sh [STAGE …]
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHONUNBUFFERED=1
asked=" $* "
stages=benchmarks/results/gpu_stages.json
rows=()
failed=0
skipped=77

# stage NAME SECONDS COMMAND…: run the command, for at most so long.
stage() {
    local name=$1 limit=$2 start=$SECONDS status omitted=false
    shift 2
    if [[ $asked != "  " && $asked != *" $name "* ]]; then return; fi
    echo "== $name (at most $limit s): $*"
    timeout "$limit" "$@"
    status=$?
    if ((status == skipped)); then omitted=true; elif ((status != 0)); then failed=1; fi
    rows+=("{\"stage\": \"$name\", \"status\": $status, \"skipped\": $omitted, \"seconds\": $((SECONDS - start)), \"limit\": $limit}")
    (IFS=,; printf '{"stages": [%s]}\n' "${rows[*]}") > "$stages"
    case $status in
    124) echo "== $name: not done in $limit s" ;;
    "$skipped") echo "== $name: skipped" ;;
    *) echo "== $name: status $status, $((SECONDS - start)) s" ;;
    esac
}

# The Hadamard programs at all orders.
stage orders 60 python benchmarks/gpu_kernels.py --only orders --out benchmarks/results/gpu_orders.json
# Attention over the packed cache: right at all sizes of heads, then its speed at 1,000 and 8,000 tokens.
stage attention 115 python benchmarks/gpu_attention.py
# Whole models beside the CPU's figures.
stage model 115 python benchmarks/gpu_model.py --only embedded
stage stories 115 python benchmarks/gpu_model.py --only stories260k
# R1's optimisers at hidden 4096 and 8192; two layers of 70B shape under a 24 GB cap; GPTQ at 7B and 70B layer shapes.
stage quantize 115 python benchmarks/gpu_calibration.py --only quantize
stage gptq 60 python benchmarks/gpu_calibration.py --only gptq
stage calibration 60 python benchmarks/gpu_calibration.py --only calibration
# Products, decode and prefill at 7B shape against bfloat16.
stage products 115 python benchmarks/gpu_kernels.py --only products --out benchmarks/results/gpu_products.json
stage inference 115 python benchmarks/inference.py --shapes Llama-2-7B --layers 4 --repetitions 3 --prefill 2048 \
    --artifacts "W4A16;W4A8;W4A4 with R4;W4A4KV4 with R3, R4" --out benchmarks/results/inference_gpu.json
# The same linears by vLLM's Marlin, in an environment that has vLLM (VLLM_PYTHON names its Python).
PYTHONPATH=src stage marlin 115 "${VLLM_PYTHON:-python}" benchmarks/gpu_marlin.py
# Kernels and GPTQ against the reference, on the device instead of in Triton's interpreter.
TRITON_INTERPRET=0 OMP_NUM_THREADS=1 stage tests 115 python -m pytest -q -n 8 tests/runtime/kernels/test_triton_kernels.py \
    tests/runtime/kernels/test_attention_triton.py tests/runtime/kernels/test_choices.py tests/runtime/test_cache.py \
    tests/quantization/test_gptq_triton.py

cat "$stages"
exit $failed
