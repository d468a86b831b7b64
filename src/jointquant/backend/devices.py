"""Which accelerators there are, by name; what they lack is in ``operations``."""

from __future__ import annotations

import os
import platform
import re
import warnings
from functools import cache
from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor

from jointquant.backend.operations import HOST, supports
from jointquant.errors import InputError, printable, require, unknown

X86 = ("x86_64", "AMD64")
"""What platform.machine() calls processors that torch has oneDNN's products for."""

ON_PAPER_DEVICE = torch.device("cuda")
"""An accelerator that a plan is made for without one at hand."""

EXPECTED = "expected auto, cpu, or an accelerator such as cuda:0, xpu:0, npu:0, mps"


def resolve_device(name: str = "auto") -> torch.device:
    """The device called ``name``; "auto" is the accelerator if there is one, else the CPU.

    Raises:
        InputError: the name is unknown, no such device is at hand, or torch-npu is needed and cannot be imported.
    """
    if name == "cpu":
        return HOST
    _prepare(name)
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if name == "auto":
        return accelerator or HOST
    device = _parse(name)
    if device == torch.device("cpu:0"):
        return HOST
    found = _found(accelerator)
    require(
        accelerator is not None and device.type == accelerator.type and (device.index or 0) < _count(),
        f"device {name!r} is not available: this machine has {found}",
    )
    return device


def _parse(name: str) -> torch.device:
    shown = name if len(name) <= 40 else name[:40] + "…"
    message = f"unknown device {shown!r}: {EXPECTED}"
    require(re.fullmatch(r"[a-z]+(:[0-9]{1,2})?", name) is not None, message)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.device(name)
    except RuntimeError:
        raise InputError(message) from None


def _prepare(name: str) -> None:
    """torch knows an Ascend NPU only once torch_npu was imported."""
    asked = name.partition(":")[0] == "npu"
    if not asked and not (name == "auto" and find_spec("torch_npu") is not None):
        return
    try:
        import_module("torch_npu")
    except (ImportError, OSError, RuntimeError) as error:
        reason = printable(str(error), 200)
        raise InputError(
            f"device {name!r}: torch_npu cannot be imported ({reason}): expected pip install torch-npu for this torch "
            'and CANN, or `device="cpu"`'
        ) from None


def _count() -> int:
    return torch.accelerator.device_count()


def _found(accelerator: torch.device | None) -> str:
    """The devices of this machine in words."""
    if accelerator is None:
        return "cpu and no accelerator"
    return ", ".join(["cpu", *(f"{accelerator.type}:{index}" for index in range(_count()))])


COLLECTIVES = {"cuda": "nccl", "npu": "hccl", "xpu": "xccl"}
"""What carries tensors of a device from rank to rank; on a CPU gloo does, and for devices that are not named here."""


def choose_accelerator(local_rank: int, ranks_on_host: int) -> torch.device:
    """Make one of this host's accelerators the one of this process; the CPU where there is not one for each."""
    accelerator = resolve_device("auto")
    if accelerator.type not in COLLECTIVES or ranks_on_host > _count():
        return HOST
    torch.accelerator.set_device_index(local_rank)
    return accelerator


def check_own(device: torch.device, ranks_on_host: int) -> None:
    """Raises InputError when there is not an accelerator for each of the ranks on this host that want one."""
    require(
        ranks_on_host == 1 or device.type == "cpu" or (device.type in COLLECTIVES and ranks_on_host <= _count()),
        f"{ranks_on_host} ranks on this host and {_found(device)}: expected an accelerator for each rank "
        f'(torchrun --nproc-per-node {_count() if device.type != "cpu" else 1}), or `device="cpu"`',
    )


def collective_backends(accelerator: torch.device) -> dict[str, str]:
    """By type of the device that tensors are on, what carries them; the host's memory is always among them."""
    kind = accelerator.type
    return {HOST.type: "gloo"} | ({kind: COLLECTIVES[kind]} if kind in COLLECTIVES else {})


def all_devices() -> list[torch.device]:
    """The CPU, and each accelerator. Raises InputError when torch_npu is installed and broken."""
    accelerator = resolve_device("auto")
    if accelerator == HOST:
        return [HOST]
    return [HOST, *(torch.device(accelerator.type, index) for index in range(_count()))]


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def resolve_dtype(name: str, device: torch.device, stored: torch.dtype) -> torch.dtype:
    """The dtype to compute in; "auto" is float32 on the CPU and the checkpoint's own on accelerators.

    On an accelerator without bfloat16, "auto" is float32 for a checkpoint in it: float16 ends earlier than its numbers.

    Raises:
        InputError: an unknown dtype, or one that the device lacks.
    """
    if name == "auto":
        dtype = torch.float32 if device.type == "cpu" or _lacks(device, stored) == "bfloat16" else stored
    else:
        require(name in DTYPES, unknown("dtype", name, ["auto", *DTYPES]))
        dtype = DTYPES[name]
    lacking = _lacks(device, dtype)
    possible = [each for each in ("float32", "bfloat16", "float16") if each != lacking]
    require(lacking is None, f"dtype {lacking} is not for {device.type} devices: expected {' or '.join(possible)}")
    return dtype


def _lacks(device: torch.device, dtype: torch.dtype) -> str | None:
    """The name of a dtype that the device does not compute in; None: it does."""
    name = {torch.float64: "float64", torch.bfloat16: "bfloat16"}.get(dtype)
    return None if name is None or supports(device, name) else name


def is_nvidia(device: torch.device) -> bool:
    """Whether it is a GPU of NVIDIA's."""
    return device.type == "cuda" and torch.version.cuda is not None


@cache
def has_triton() -> bool:
    """Whether Triton is installed."""
    return find_spec("triton") is not None


def launches_cost(device: torch.device) -> bool:
    """Whether starting an operation may take longer than doing it: many small ones are then done as one."""
    return device.type != "cpu"


def reads_page_locked(device: torch.device) -> bool:
    """Whether the device copies from page-locked memory of the host by itself, while the host goes on."""
    return device.type in ("cuda", "npu")


def sent(x: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host's pageable memory on a device; the host does not wait until it has arrived, where the
    backend orders copies and the work after them by itself. What is sent may change at once: the backend stages it.
    """
    return x.to(device, non_blocking=device.type in COLLECTIVES)


def elements_at_once(device: torch.device) -> int:
    """Elements of a weight that are rounded at a time: many where launching work costs, few where memory is scarce."""
    return 2**23 if device.type == "cpu" else 2**27


def elements_in_cache(device: torch.device) -> int:
    """Elements that many passes run over at a time: what the cores' caches hold, or many on accelerators."""
    return 2**19 if device.type == "cpu" else elements_at_once(device)


def tokens_at_once(device: torch.device) -> int:
    """Tokens that run through a layer at once, unless memory is too small for them: their activations stay in caches,
    or on accelerators keep all units busy.
    """
    return 2**10 if device.type == "cpu" else 2**12


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was told to."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def device_name(device: torch.device) -> str:
    """What the device calls itself."""
    if device.type == "cpu":
        return _processor()
    describe = getattr(getattr(torch, device.type, None), "get_device_name", None)
    return str(describe(device)) if describe else device.type


def _processor() -> str:
    """The processor's name, where Linux tells it, else the machine's."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.machine()


def memory(device: torch.device) -> tuple[int, int] | None:
    """(free, total) bytes of the device's memory; None where the backend does not tell."""
    if device.type == "cpu":
        try:
            page = os.sysconf("SC_PAGE_SIZE")
            return page * os.sysconf("SC_AVPHYS_PAGES"), page * os.sysconf("SC_PHYS_PAGES")
        except (AttributeError, ValueError, OSError):
            return None
    try:
        free, total = torch.accelerator.get_memory_info(device)
    except (AttributeError, RuntimeError, ValueError):
        return None
    return int(free), int(total)
