"""Linears with 4-bit weights in groups of 128 at the shapes of Llama 2 7B: ours, vLLM's Marlin, and bfloat16.

    python benchmarks/gpu_marlin.py [--out FILE]

In an environment that has vLLM; without it the status is 77 before anything is imported: nothing was measured. The
input is in bfloat16: one token and 16 (decode), and 2048 (prefill). Times are those of the programs alone (replays of a
graph, on weights that are in no cache), and with what the host does to launch them; a ratio is another's time by ours.
Marlin's error is against the product with the weight that it was made of. Writes benchmarks/results/gpu_marlin.json.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

RESULT = Path(__file__).parent / "results" / "gpu_marlin.json"
NOT_MEASURED = 77
WIDTH, GROUP_SIZE = "W4A16 g128", 128
MOST_BLOCKS = 4
"""Of Marlin's that share a multiprocessor."""


class Marlin:
    """vLLM's linear for symmetric integers of 4 bits.

    Args:
        weight: [out, in] in bfloat16.
    """

    def __init__(self, weight: Tensor) -> None:
        import torch
        from vllm.model_executor.layers.quantization.utils import marlin_utils
        from vllm.model_executor.layers.quantization.utils.marlin_utils_test import marlin_quantize
        from vllm.scalar_type import scalar_types

        kind = scalar_types.uint4b8
        given = {"w": weight.T.contiguous(), "quant_type": kind, "group_size": GROUP_SIZE, "act_order": False}
        self.read, packed, scale, *order = called(marlin_quantize, given)[:5]
        nothing = torch.empty(0, dtype=torch.int, device=weight.device)
        self.linear = marlin_utils.apply_gptq_marlin_linear
        self.options = {
            "weight": packed, "weight_scale": scale, "weight_zp": nothing, "wtype": kind, "is_k_full": True,
            "g_idx": order[0] if order else nothing, "g_idx_sort_indices": order[1] if len(order) > 1 else nothing,
            "workspace": marlin_utils.marlin_make_workspace_new(weight.device, MOST_BLOCKS),
            "output_size_per_partition": weight.shape[0], "input_size_per_partition": weight.shape[1],
        }  # fmt: skip

    def works(self, x: Tensor) -> list[Callable[[], Tensor]]:
        """The product with x, with as many copies of the weight as no cache holds."""
        from gpu_kernels import BEYOND_CACHE

        packed = self.options["weight"]
        count = max(1, BEYOND_CACHE // packed.nbytes)
        copies = [self.options | {"input": x, "weight": packed.clone()} for _ in range(count)]
        return [lambda each=each: called(self.linear, each) for each in copies]

    def error(self, x: Tensor) -> float:
        """As a part of the largest number."""
        expected = x.double() @ self.read.double()
        return float((called(self.linear, self.options | {"input": x}) - expected).abs().max() / expected.abs().max())


def called(function: Callable[..., Any], given: dict[str, Any]) -> Any:
    """With those of its arguments that this version of vLLM has."""
    return function(**{name: given[name] for name in inspect.signature(function).parameters if name in given})


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    if find_spec("vllm") is None:
        print("vLLM is not installed: its Marlin linears were not measured")
        sys.exit(NOT_MEASURED)
    import vllm
    from gpu_kernels import MOST_ERROR, ROWS, SHAPES

    from jointquant.backend.devices import resolve_device
    from jointquant.errors import require
    from report import Result

    require(resolve_device("auto").type == "cuda", "no GPU here: expected one that torch calls cuda")
    command = "python benchmarks/gpu_marlin.py"
    result = Result(arguments.out, command, "cuda", vllm=vllm.__version__)
    wrong = []
    for name, shape in SHAPES.items():
        for rows in ROWS:
            row = {"product": name, "rows": rows, **measured(shape, rows)}
            result.add(row)
            wrong += [row] * (max(row["error"], row["error_marlin"]) > MOST_ERROR)
    require(not wrong, f"{len(wrong)} rows are off by more than they may, such as {wrong[:1]}")


def measured(shape: tuple[int, int], rows: int) -> dict[str, Any]:
    """One linear for some tokens."""
    from gpu_kernels import Product
    from gpu_timing import device_seconds, eager_seconds

    product = Product(shape, WIDTH, rows)
    marlin = Marlin(product.weight.bfloat16())
    works = {"": product.works(), "_marlin": marlin.works(product.x), "_bf16": product.plain_works()}
    row: dict[str, Any] = {"error": product.error(), "error_marlin": marlin.error(product.x)}
    for name, each in works.items():
        row[f"microseconds{name}"] = 1e6 * device_seconds(each)
        row[f"microseconds_called{name}"] = 1e6 * eager_seconds(each)
    for name in ("marlin", "bf16"):
        row[f"ratio_{name}"] = row[f"microseconds_{name}"] / row["microseconds"]
        row[f"ratio_called_{name}"] = row[f"microseconds_called_{name}"] / row["microseconds_called"]
    return row


if __name__ == "__main__":
    main()
