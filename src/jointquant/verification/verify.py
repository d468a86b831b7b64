"""``verify``: run what was written in a runtime, and hold what it computes against the fingerprint."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from jointquant.errors import require
from jointquant.fingerprint.carried import fingerprint_at, is_gguf
from jointquant.fingerprint.record import Fingerprint
from jointquant.models.options import DigestMode, digests_named
from jointquant.verification.at_server import AtServer
from jointquant.verification.in_llama_cpp import InLlamaCpp
from jointquant.verification.in_transformers import InTransformers
from jointquant.verification.runtime import Runtime, observe
from jointquant.verification.verdict import Verdict, judge
from jointquant.verification.vllm_server import vllm_at
from jointquant.verification.words import is_url

EIGHT_BIT_INPUTS = "int-quantized"
"""In config.json of an export: runtimes quantize the inputs of its products themselves, to 8 bits."""


def verify(
    subject: str | Path,
    *,
    runtime: str | None = None,
    fingerprint: str | Path | None = None,
    dtype: str = "auto",
    device: str = "auto",
    model: str | None = None,
    digests: DigestMode | None = None,
) -> Verdict:
    """Does a runtime compute what the quantizing process did?

    Args:
        subject: an artifact, an export, a GGUF file, or the URL of a server that has loaded one.
        runtime: ``transformers``, ``llama.cpp``, ``vllm``, or a server's URL; None: llama.cpp for a GGUF file,
            transformers for a folder.
        fingerprint: what carries the fingerprint, where ``subject`` does not: a folder, a GGUF file, or a
            fingerprint.json.
        dtype: that transformers or vLLM computes in, as in ``ModelOptions``. Of a server, what it was started with:
            ``auto`` lets rounding in bfloat16 pass.
        device: where transformers runs it.
        model: which of a server's models; None: the first that it names.
        digests: whether those of an artifact are checked first, as in ``ModelOptions``.

    Raises:
        InputError: no fingerprint, or no such runtime, or one that refuses what it is given.
    """
    words, mode = str(subject), digests_named(digests)
    named = words if is_url(words) else runtime
    carrier = fingerprint if fingerprint is not None else None if is_url(words) else subject
    require(carrier is not None, f"{words} is a server: expected `fingerprint` with the folder or file that it loaded")
    known = fingerprint_at(Path(str(carrier)), mode)
    path = Path(words)
    if named is None:
        named = "llama.cpp" if path.is_file() and is_gguf(path) else "transformers"
    with _opened(path, named, known, (dtype, device, model), mode) as opened:
        return judge(known, observe(opened, known))


def _opened(
    path: Path, named: str, known: Fingerprint, given: tuple[str, str, str | None], digests: DigestMode
) -> AbstractContextManager[Runtime]:
    """The runtime, with the subject loaded."""
    dtype, device, model = given
    arithmetic = "float32" if dtype == "float32" else "bfloat16"
    if is_url(named):
        return nullcontext(AtServer(named, arithmetic, model))
    if named == "llama.cpp":
        require(path.is_file(), f"{path} is a folder, and llama.cpp reads files: expected an export --format gguf")
        return InLlamaCpp(path, len(known.tokens))
    require(path.is_dir(), f"{path} is a file, and {named} reads folders: expected an artifact or another export")
    if named == "vllm":
        return vllm_at(path, "int8" if quantizes_inputs(path) else arithmetic, dtype)
    require(named == "transformers", f"no runtime {named!r}: expected transformers, llama.cpp, vllm or a URL")
    return nullcontext(InTransformers(path, dtype, device, digests))


def quantizes_inputs(folder: Path) -> bool:
    """Whether an export asks its runtime to quantize inputs, which it may do on a grid of its own."""
    return EIGHT_BIT_INPUTS in (folder / "config.json").read_text(encoding="utf-8")
