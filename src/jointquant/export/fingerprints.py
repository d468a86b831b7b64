"""The fingerprint of an export: the artifact's own, or the base model's where nothing is rounded.

Every export with the quantized values computes what the artifact does: what a runtime rounds besides, such as inputs of
8 bits in llama.cpp, is in the tolerance of its arithmetic. The rotated model before rounding computes what its base
does.
"""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from jointquant.export.artifact import Artifact
from jointquant.fingerprint.make import fingerprint_of, fingerprint_of_artifact
from jointquant.fingerprint.record import Fingerprint, load_fingerprint
from jointquant.rotations.bundle import Rotations
from jointquant.runtime.streaming import open_any_stream
from jointquant.trust.folder import FINGERPRINT_NAME


def fingerprint_of_export(artifact: Artifact, tokenizer: PreTrainedTokenizerBase) -> Fingerprint:
    """That of the artifact, or a new one where it was made before there were any."""
    path = artifact.folder / FINGERPRINT_NAME
    return load_fingerprint(path) if path.is_file() else fingerprint_of_artifact(artifact.folder, tokenizer)


def with_rounded_weights(fingerprint: Fingerprint) -> Fingerprint:
    """Of an export whose weights were rounded once more, to 16 bits: no arithmetic is closer than such values are."""
    noise = fingerprint.noise
    coarse = max(noise.get("float32", 0.0), noise.get("bfloat16", 0.0))
    return fingerprint.model_copy(update={"noise": noise | {"float32": coarse}})


def fingerprint_of_rotated(artifact: Artifact, base: Path, tokenizer: PreTrainedTokenizerBase) -> Fingerprint:
    """What the base model predicts, and what a rotated one would with each fault of rotations."""
    path = artifact.rotations()
    return fingerprint_of(open_any_stream(base), Rotations() if path is None else Rotations.load(path), tokenizer)
