"""An accelerator that is none: torch's ``npu`` device, whose memory is the host's and whose operations the host runs.

It refuses what a real one lacks, and counts how often the host waits for it. torch lets one backend besides its own be
written in Python; it stays for the rest of the process, so tests that need it run in a process of their own.
"""

from __future__ import annotations

import ctypes
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "npu"
SOURCE = str(Path(__file__).parents[1] / "src")

HOST = torch.device("cpu")
HOST_KEYS = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)

DLPACK_CPU, DLPACK_EXTENSION = 1, 12
"""Kinds of devices in DLPack's numbering."""

WAITS = ("_local_scalar_dense", "nonzero", "_unique2", "masked_select", "equal", "bincount", "is_nonzero")
"""Operations whose result the host needs to go on: its value, or its shape."""

INDEXED = ("index", "index_put", "index_put_", "_index_put_impl_")
"""Operations of that kind where an index is a mask: how much of it is true has to be known."""


class _Device(ctypes.Structure):
    _fields_ = (("kind", ctypes.c_int32), ("index", ctypes.c_int32))


class _Head(ctypes.Structure):
    """What a DLPack tensor begins with."""

    _fields_ = (("data", ctypes.c_void_p), ("device", _Device))


_pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
_pointer_of.restype, _pointer_of.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)


def _seen_as(x: Tensor, kind: int) -> Tensor:
    """The same memory as a tensor of another device."""
    capsule = torch._C._to_dlpack(x)
    ctypes.cast(_pointer_of(capsule, b"dltensor"), ctypes.POINTER(_Head)).contents.device.kind = kind
    return torch._C._from_dlpack(capsule)


def on_host(x: Tensor) -> Tensor:
    """A tensor of the device as one of the host, whose own stay what they are: the same memory."""
    if x.device.type != NAME:
        return x
    return _seen_as(x, DLPACK_CPU) if x.numel() else torch.empty_strided(x.shape, x.stride(), dtype=x.dtype)


def on_device(x: Tensor) -> Tensor:
    """A tensor of the host as one of the device: the same memory."""
    return _seen_as(x, DLPACK_EXTENSION)


class RefusedError(RuntimeError):
    """The device was asked for what it lacks."""


@dataclass
class Machine:
    """What the device is at the moment.

    Attributes:
        present: whether torch finds it.
        refuses: (operation, its tensors) → why the device cannot do it; None: it can.
        waits: how often the host waited for it, by operation and the line of the project that asked.
        sent: how often the host waited until its own tensor had arrived there, by the line that sent it.
        calls: how often each operation was asked for.
    """

    present: bool = False
    refuses: Callable[[str, list[Tensor]], str | None] = lambda name, tensors: None
    waits: Counter[tuple[str, str]] = field(default_factory=Counter)
    sent: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)


MACHINE = Machine()


class _Module:
    """``torch.npu``."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return MACHINE.present

    def current_device(self) -> int:
        return 0

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        """Its random numbers are the host's."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]

    def device_count(self) -> int:
        return int(MACHINE.present)


def _asked_by() -> str:
    """The line of the project that the present operation is for."""
    frame = sys._getframe(1)
    while frame is not None and not frame.f_code.co_filename.startswith(SOURCE):
        frame = frame.f_back  # type: ignore[assignment]
    return "" if frame is None else f"{frame.f_code.co_filename[len(SOURCE) + 1 :]}:{frame.f_lineno}"


def _mapped(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """The same with other tensors: arguments and results of operations are flat, or have lists of tensors."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, (list, tuple)):
        return type(value)([_mapped(part, change) for part in value])
    return value


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    """All of arguments or results."""
    return [x for value in values for x in (value if isinstance(value, (list, tuple)) else [value]) if _is_tensor(x)]


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


@dataclass(frozen=True)
class Shape:
    """What an operation's declaration says of its arguments and results."""

    name: str
    is_view: bool
    outs: tuple[str, ...]
    wants_tensor: tuple[bool, ...]
    results: int


@cache
def _shape_of(operation: Any) -> Shape:
    schema = operation._schema
    aliases = [result.alias_info for result in schema.returns]
    return Shape(
        schema.name.removeprefix("aten::"),
        any(alias is not None and not alias.is_write for alias in aliases),
        tuple(argument.name for argument in schema.arguments if argument.is_out),
        tuple(str(argument.type) == "Tensor" for argument in schema.arguments),
        len(schema.returns),
    )


def _indices(args: tuple[Any, ...]) -> list[Tensor]:
    """Those of an operation of ``INDEXED``: its second argument."""
    return _tensors(args[1:2])


def _check(name: str, tensors: list[Tensor]) -> None:
    why = MACHINE.refuses(name, [x for x in tensors if x.device.type == NAME])
    if why is not None:
        raise RefusedError(f"{name} on {NAME}, asked by {_asked_by()}: {why}")


def _note_wait(name: str) -> None:
    MACHINE.waits[name, _asked_by()] += 1


def _run(operation: Any, *args: Any, **kwargs: Any) -> Any:
    """Any operation: the host does it, in the device's memory."""
    shape = _shape_of(operation)
    MACHINE.calls[shape.name] += 1
    given = _tensors((*args, *kwargs.values()))
    _check(shape.name, given)
    if shape.is_view:  # the same memory: no work
        return operation.redispatch(HOST_KEYS, *args, **kwargs)
    if shape.name in WAITS or (shape.name in INDEXED and any(x.dtype == torch.bool for x in _indices(args))):
        _note_wait(shape.name)
    lent = {id(x): on_host(x) for x in given}
    args = tuple(  # a number that torch had made a tensor of comes as a number
        torch.tensor(value) if wanted and isinstance(value, (bool, int, float)) else value
        for value, wanted in zip(args, shape.wants_tensor, strict=False)
    )
    host_args = [_mapped(value, lambda x: lent.get(id(x), x)) for value in args]
    host_kwargs = {name: _mapped(value, lambda x: lent[id(x)]) for name, value in kwargs.items()}
    host_kwargs |= {"device": HOST} if "device" in kwargs else {}
    host_kwargs |= {out: torch.empty(0, dtype=kwargs[out].dtype) for out in shape.outs}  # can be resized
    found = operation(*host_args, **host_kwargs)
    for out in shape.outs:
        _put(kwargs[out], host_kwargs[out])
    if shape.outs or not shape.results:
        return tuple(kwargs[out] for out in shape.outs) if shape.results > 1 else kwargs.get(*shape.outs or [""])
    owners = {id(lent[id(x)]): x for x in given}
    results = _mapped(found, lambda x: owners[id(x)] if id(x) in owners else on_device(x))
    _check(shape.name, _tensors([results] if shape.results == 1 else results))
    return results


def _put(target: Tensor, result: Tensor) -> None:
    """A result of the host into a tensor of the device, which takes its shape."""
    if target.shape == result.shape:
        on_host(target).copy_(result)
    else:
        target.data = on_device(result)


def _copy(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """``copy_``, of which one side at least is the device's."""
    _check("copy_", [target, source])
    if target.device.type != NAME and not non_blocking:
        _note_wait("copy to the host")
    if source.device.type != NAME and not non_blocking:
        MACHINE.sent[_asked_by()] += 1
    on_host(target).copy_(on_host(source))
    return target


def _page_locked(x: Tensor) -> Tensor:
    """``pin_memory``: a copy that carries a mark."""
    copy = x.clone()
    copy.page_locked = True  # type: ignore[attr-defined]
    return copy


def _is_page_locked(x: Tensor) -> bool:
    return getattr(x, "page_locked", False)


_libraries: list[torch.library.Library] = []


def install() -> None:
    """Make the backend known to torch, once a process."""
    if _libraries:
        return
    _setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
    everything = torch.library.Library("_", "IMPL")
    everything.fallback(_run, "PrivateUse1")
    single = torch.library.Library("aten", "IMPL")
    single.impl("copy_", _copy, "PrivateUse1")
    _libraries.extend([everything, single])


@contextmanager
def present(refuses: Callable[[str, list[Tensor]], str | None] = lambda name, tensors: None) -> Iterator[Machine]:
    """While open, torch finds the device."""
    install()
    MACHINE.present, MACHINE.refuses = True, refuses
    for counted in (MACHINE.waits, MACHINE.sent, MACHINE.calls):
        counted.clear()
    real = torch.accelerator.synchronize, Tensor.pin_memory, Tensor.is_pinned
    torch.accelerator.synchronize = lambda device=None: None  # asks for what only a backend in C++ has
    Tensor.pin_memory, Tensor.is_pinned = _page_locked, _is_page_locked  # so do these
    try:
        yield MACHINE
    finally:
        MACHINE.present = False
        torch.accelerator.synchronize, Tensor.pin_memory, Tensor.is_pinned = real
