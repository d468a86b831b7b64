"""Compile the Triton programs for GPUs that are not here, at the shapes of real models, and read what they need.

    python benchmarks/triton_compile.py [--only linears,attention] [--targets sm_80,sm_90] [--models Llama-2-7B]
        [--out FILE]

The programs are called as at run time, with tensors that have no memory and a driver that names a target instead of a
device: each variant that a model would launch is compiled, none is run. A row is a variant: bytes of shared memory and
the bound that JointQuant compares with what a device has, bytes of stack for each thread (what did not fit into
registers), the tensor cores' instructions in it, and the processor's seconds that it took. Writes
benchmarks/results/triton_compile.json, and keeps what it holds of other programs from the same machine and versions.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "0"

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from jointquant.quantization.gptq_triton import round_columns
from jointquant.quantization.integer import IntFormat
from jointquant.quantization.ranges import DynamicRange, InputRange, SearchedRange
from jointquant.rotations.hadamard import HadamardTransform
from jointquant.runtime.inner_rotation import InnerRotation
from jointquant.runtime.input_path import InputPath
from jointquant.runtime.kernels import triton_attention, triton_few_rows, triton_hadamard, triton_many_rows
from jointquant.runtime.kernels.attention_triton import WORD
from jointquant.runtime.kernels.int4_triton import Int4Triton, TritonWeight
from jointquant.runtime.kernels.launching import parts
from jointquant.runtime.kernels.packed_attention import NUM_BITS
from jointquant.runtime.kernels.triton_tokens import rms_norm_integers
from jointquant.runtime.site import SiteInput
from report import Result

RESULT = Path(__file__).parent / "results" / "triton_compile.json"
TARGETS = {
    **{f"sm_{arch}": GPUTarget("cuda", arch, 32) for arch in (80, 86, 89, 90, 100)},
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
MODELS = {
    "Llama-2-7B": (4096, 11008, 32, 32), "Llama-2-13B": (5120, 13824, 40, 40), "Llama-3-8B": (4096, 14336, 32, 8),
    "Llama-70B": (8192, 28672, 64, 8), "Qwen3-8B": (4096, 12288, 32, 8), "Qwen3-32B": (5120, 25600, 64, 8),
}  # fmt: skip
"""Hidden and intermediate size, heads and KV heads; a head's size is 128 in all."""
HEAD, OTHER_HEADS = 128, (64, 80, 256)
FEW_CACHED, MANY_CACHED = 100, 8000
"""Tokens in a cache: one share, and several."""
ROWS = (1, 16, 64, 2048)
A8, A4 = DynamicRange(IntFormat(8, False)), DynamicRange(IntFormat(4, False))
FLOAT = 4
TENSOR_CORES = ("wgmma", "tcgen05.mma", "mma.sync", "mfma")


class Driver:
    """Stands for the driver of a device that is not here; another number for each, as programs are kept by it."""

    def __init__(self, target: GPUTarget) -> None:
        self.target, self.number = target, list(TARGETS.values()).index(target)

    def get_current_target(self) -> GPUTarget:
        """What is compiled for."""
        return self.target

    def get_current_device(self) -> int:
        """Its number."""
        return self.number

    def get_current_stream(self, device: int) -> int:
        """Nothing runs on it."""
        return 0


def compiling(add: Callable[[dict[str, Any]], None]) -> Callable[..., Any]:
    """What stands in the place of ``JITFunction.run``: it compiles a program, and adds a row for each variant."""
    run, seen = JITFunction.run, dict[int, Any]()

    def compile_only(program: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        start = processor_seconds()
        kernel = run(program, *args, grid=grid, warmup=True, **kwargs)
        if id(kernel) not in seen:
            seen[id(kernel)] = kernel
            name = program.__name__.lstrip("_")
            add({"program": name, **read(kernel, processor_seconds() - start), "bound_bytes": bound(name, kwargs)})
        return kernel

    return compile_only


def processor_seconds() -> float:
    """What this process and the compilers that it started have had of the processors."""
    return sum(os.times()[:4])


def bound(name: str, given: dict[str, Any]) -> int | None:
    """The shared memory that JointQuant takes a variant to need at most; None: it does not ask."""
    if name in ("last_factor", "outer_factor", "blocks"):
        return triton_hadamard.factor_bytes()
    if name == "hadamard_integers":
        return triton_hadamard.token_bytes(given["a"], given["b"])
    if name == "attend":
        return triton_attention.shared_bytes(given["size"])
    more = given.get("num_warps"), given.get("num_stages")
    if name == "few_rows":
        sizes = (given[f"block_{side}"] for side in ("rows", "out", "half"))
        return triton_few_rows.shared_bytes(triton_few_rows.Tile(*sizes, *more), given["x"].itemsize)
    if name == "integer_product":
        sizes = (given[f"block_{side}"] for side in ("rows", "out", "k"))
        return triton_many_rows.shared_bytes(triton_many_rows.Tile(*sizes, *more))
    return None


def read(kernel: Any, seconds: float) -> dict[str, Any]:
    """What a compiled program needs."""
    text = kernel.asm.get("ptx") or kernel.asm.get("amdgcn") or ""
    found = [name for name in TENSOR_CORES if name in text]
    needs = {"shared_bytes": kernel.metadata.shared, "warps": kernel.metadata.num_warps, "tensor_cores": found}
    return needs | resources(kernel.asm.get("cubin")) | {"seconds": round(seconds, 2)}


def resources(binary: bytes | None) -> dict[str, int]:
    """Registers and bytes of stack of each thread, as far as a tool is there to tell."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if binary is None or not tool.exists():
        return {}
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        told = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", told)
    return {} if found is None else {"registers": int(found[1]), "stack_bytes": int(found[2])}


def empty(*shape: int, dtype: torch.dtype) -> Tensor:
    """Without memory."""
    return torch.empty(*shape, dtype=dtype, device="meta")


def weight(out: int, size: int, groups: int, quantizer: InputRange | None) -> TritonWeight:
    """W [out, size]."""
    scales = empty(out, groups, dtype=torch.float32), empty(out, groups, dtype=torch.int8)
    blocks = empty(out, size // 64 if groups > 1 else 0, dtype=torch.int32)
    packed, sums = empty(out, size // 2, dtype=torch.uint8), empty(out, dtype=torch.int32)
    return TritonWeight(packed, *scales, sums, blocks, quantizer)


def multiply(rows: int, out: int, size: int, path: InputPath, group_size: int | None, dtype: torch.dtype) -> None:
    """One linear."""
    x = empty(rows, size, dtype=dtype)
    known = path.buffers(size, torch.device("meta"))
    groups = 1 if group_size is None else size // group_size
    Int4Triton().run(SiteInput(x, path, known), weight(out, size, groups, path.quantizer))


def attention(
    heads: tuple[int, int], head_dim: int, quantizer: DynamicRange, dtype: torch.dtype, tokens: int = MANY_CACHED
) -> None:
    """One new token in a model with so many heads and KV heads, and others in the cache."""
    query, fmt = empty(1, heads[0], 1, head_dim, dtype=dtype), quantizer.fmt
    size = head_dim // 2 if fmt.num_bits <= NUM_BITS else head_dim
    record = parts(size + FLOAT + fmt.has_zero_point, WORD) * WORD
    records = empty(1, heads[1], tokens, record, dtype=torch.uint8)
    triton_attention.attend(query, records, records, (fmt, fmt), head_dim**-0.5)


def attentions(*heads: int) -> None:
    """A model's attention over a packed cache, and that of heads of other sizes."""
    both = heads[0], heads[1]
    attention(both, HEAD, A4, torch.bfloat16, FEW_CACHED)
    for quantizer, dtype in ((A4, torch.bfloat16), (A4, torch.float32), (A8, torch.bfloat16)):
        attention(both, HEAD, quantizer, dtype)
    for head_dim in OTHER_HEADS:
        attention(both, head_dim, A4, torch.bfloat16)


def linears(hidden: int, intermediate: int) -> None:
    """A model's products, what happens to their inputs, and GPTQ's rounding."""
    transform = HadamardTransform.of_size(intermediate)
    plain = [InputPath(None, quantizer) for quantizer in (None, A8, A4)]
    learned = InputPath(transform, SearchedRange(IntFormat(4, False)), centred=True, inner=InnerRotation(128))
    for rows in ROWS:
        for group_size in (None, 128):
            for path in plain:
                multiply(rows, hidden, hidden, path, group_size, torch.bfloat16)
        multiply(rows, hidden, hidden, InputPath(None, A4, centred=True), None, torch.bfloat16)
        for path in (InputPath(transform, A4), learned):
            multiply(rows, hidden, intermediate, path, None, torch.bfloat16)
    multiply(64, hidden, intermediate, InputPath(transform, A8), None, torch.float32)
    x = empty(64, hidden, dtype=torch.bfloat16)
    rms_norm_integers(x, empty(hidden, dtype=torch.bfloat16), 1e-5, IntFormat(8, False), 1.0)
    for stack in ((), (8,)):
        columns = [empty(*stack, 16, hidden, dtype=torch.float32) for _ in range(5)]
        codes = empty(*stack, 16, hidden, dtype=torch.int8)
        round_columns((*columns, codes), empty(*stack, 16, 16, dtype=torch.float32), IntFormat(4, False))


PARTS: dict[str, Callable[[int, int, int, int], None]] = {
    "linears": lambda hidden, intermediate, *heads: linears(hidden, intermediate),
    "attention": lambda hidden, intermediate, *heads: attentions(*heads),
}
ATTENTION = ("attend", "combine")
"""Programs of the part of that name; all others are of the other."""


def supported(target: GPUTarget) -> bool:
    """Whether the Triton that is installed compiles for it."""
    from triton.compiler import make_backend

    with suppress(Exception):
        return make_backend(target) is not None
    return False


def main() -> None:
    """Compile and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help=f"some of {', '.join(PARTS)}")
    parser.add_argument("--targets", default=",".join(TARGETS), help=f"some of {', '.join(TARGETS)}")
    parser.add_argument("--models", default=",".join(MODELS), help=f"some of {', '.join(MODELS)}")
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    given = "" if arguments.models == ",".join(MODELS) else f" --models {arguments.models}"
    asked = arguments.only.split(",")
    result = Result(arguments.out, f"python benchmarks/triton_compile.py{given}", triton=triton.__version__)
    result.keep(lambda row: ("attention" if row["program"] in ATTENTION else "linears") not in asked)
    for name in arguments.targets.split(","):
        if not supported(TARGETS[name]):
            print(f"{name}: no back end in Triton {triton.__version__}")
            continue
        driver.set_active(Driver(TARGETS[name]))
        for each in arguments.models.split(","):
            with replaced(compiling(lambda row, facts={"target": name, "model": each}: result.add(facts | row))):
                for part in asked:
                    PARTS[part](*MODELS[each])
    result.write()


@contextmanager
def replaced(run: Callable[..., Any]) -> Iterator[None]:
    """Programs are not launched but given to ``run``."""
    before = JITFunction.run
    JITFunction.run = run  # type: ignore[method-assign]
    try:
        yield
    finally:
        JITFunction.run = before  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
