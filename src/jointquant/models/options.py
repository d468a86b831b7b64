"""How a model is found and opened, as every verb takes it."""

from __future__ import annotations

import os
from typing import Literal, TypedDict, cast, get_args

from jointquant.errors import require

DigestMode = Literal["check", "ignore"]
"""What is done with the digests that an artifact carries."""

VARIABLE = "JOINTQUANT_DIGESTS"


class ModelOptions(TypedDict, total=False):
    """Keyword arguments of all functions that open a model.

    Attributes:
        revision: branch, tag or commit of a hub id; None: its default branch.
        hub: ``hf`` (the default) or ``modelscope``.
        device: where layers run; "auto" (the default) is the accelerator if there is one.
        dtype: what layers compute in; "auto" (the default) is float32 on the CPU and the stored dtype elsewhere.
        allow_pickle: read the pickle weights of a folder that has no others; off by default.
        digests: ``check`` that an artifact is what was written, or ``ignore`` its digests; None (the default): what the
            environment variable ``JOINTQUANT_DIGESTS`` says, else ``check``.
    """

    revision: str | None
    hub: str
    device: str
    dtype: str
    allow_pickle: bool
    digests: DigestMode | None


def completed(options: ModelOptions) -> ModelOptions:
    """``options`` with the defaults of what is not given.

    Raises:
        TypeError: a name that is none of theirs.
        InputError: ``digests`` is none of its words.
    """
    unknown = sorted(set(options) - set(ModelOptions.__annotations__))
    if unknown:
        known = ", ".join(ModelOptions.__annotations__)
        raise TypeError(f"unexpected keyword argument {unknown[0]!r}: expected some of {known}")
    defaults = ModelOptions(revision=None, hub="hf", device="auto", dtype="auto", allow_pickle=False)
    return {**defaults, **options, "digests": digests_named(options.get("digests"))}


def digests_named(word: str | None) -> DigestMode:
    """What is done with digests; None: what the environment says, else they are checked. Raises InputError."""
    said = word or os.environ.get(VARIABLE) or "check"
    known = get_args(DigestMode)
    require(said in known, f"digests {said!r}: expected one of {', '.join(known)}")
    return cast("DigestMode", said)


def of_folder(options: ModelOptions) -> ModelOptions:
    """The same for a model that has been found: it is in a folder, which has no revisions."""
    return {**options, "revision": None}
