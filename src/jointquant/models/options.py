"""How a model is found and opened, as every verb takes it."""

from __future__ import annotations

from typing import TypedDict


class ModelOptions(TypedDict, total=False):
    """Keyword arguments of all functions that open a model.

    Attributes:
        revision: branch, tag or commit of a hub id; None: its default branch.
        hub: ``hf`` (the default) or ``modelscope``.
        device: where layers run; "auto" (the default) is the accelerator if there is one.
        dtype: what layers compute in; "auto" (the default) is float32 on the CPU and the stored dtype elsewhere.
        allow_pickle: read the pickle weights of a folder that has no others; off by default.
    """

    revision: str | None
    hub: str
    device: str
    dtype: str
    allow_pickle: bool


def completed(options: ModelOptions) -> ModelOptions:
    """``options`` with the defaults of what is not given. Raises TypeError for a name that is none of theirs."""
    unknown = sorted(set(options) - set(ModelOptions.__annotations__))
    if unknown:
        known = ", ".join(ModelOptions.__annotations__)
        raise TypeError(f"unexpected keyword argument {unknown[0]!r}: expected some of {known}")
    defaults = ModelOptions(revision=None, hub="hf", device="auto", dtype="auto", allow_pickle=False)
    return {**defaults, **options}


def of_folder(options: ModelOptions) -> ModelOptions:
    """The same for a model that has been found: it is in a folder, which has no revisions."""
    return {**options, "revision": None}
