"""A draft model for an artifact: what it reads of the model's residual stream is rotated, and so it reads R1 too.

A draft of EAGLE-3 (arXiv 2503.01840, section 3.1) proposes tokens from hidden states of some of the model's layers,
side by side, which its matrix ``fc`` mixes. An artifact's are those times R1, on which an unchanged draft proposes
noise.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jointquant.errors import require
from jointquant.export.artifact import Artifact
from jointquant.files.digests import digest_of_tensors
from jointquant.files.durable import save_json, save_tensors
from jointquant.files.output import check_output, output_folder
from jointquant.models.options import DigestMode, digests_named
from jointquant.models.source import StoredTensors
from jointquant.models.stream import open_weights
from jointquant.rotations.bundle import Rotations
from jointquant.rotations.merging import rotate_rows, scale_input
from jointquant.trust.folder import CONFIG_NAME, check_folder, small_files
from jointquant.trust.shard_index import SAFETENSORS
from jointquant.trust.strict_json import read_object
from jointquant.trust.target import check_apart

MARK = "jointquant_rotated"
"""Key of a rotated draft's config.json: a digest of the R1 that is merged into it."""

READERS = ("q_proj", "k_proj", "v_proj", "qkv_proj", "q_a_proj", "kv_a_proj_with_mqa")
"""What reads an embedding and a mixed hidden state, side by side, in the first layer of a draft."""

LAYER = r"(?:midlayer|layers\.\d+)\."
PARTS = rf"{LAYER}(?:self_attn|mlp|input_layernorm|hidden_norm|post_attention_layernorm)\..+"
KNOWN = re.compile(
    rf"(?:model\.)?(?:fc\.(?:weight|bias)|embed_tokens\.weight|norm\.weight|lm_head\.weight|d2t|t2d|{PARTS})"
)
"""The tensors of a draft of EAGLE-3."""
TOGETHER = re.compile(r"(?:^|\.)(?:mtp|eh_proj|enorm|hnorm)\.")
"""In the names of layers for multi-token prediction."""


@dataclass(frozen=True)
class DraftResult:
    """What was written.

    Attributes:
        out: the folder.
        rotated: the tensors that changed.
        embedding: whose token embedding it reads: the ``draft``'s own, or the ``artifact``'s.
        seconds: wall time.
    """

    out: str
    rotated: list[str]
    embedding: str
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def rotate_draft(
    draft: str | Path,
    artifact: str | Path,
    out: str | Path,
    *,
    allow_pickle: bool = False,
    digests: DigestMode | None = None,
    overwrite: bool = False,
) -> DraftResult:
    """Make a draft of EAGLE-3 propose, beside an artifact, what it proposes beside the model that the artifact is of.

    Args:
        draft: its folder, as it was trained for that model.
        artifact: the folder that ``quantize`` wrote; exports of it have the same hidden states.
        out: a new folder; it appears only when it is complete.
        allow_pickle: read a ``pytorch_model.bin``.
        digests: whether those of the artifact are checked, as in ``ModelOptions``.
        overwrite: replace an earlier output that is there.

    Raises:
        InputError: the artifact has no R1, or several; the draft is none of EAGLE-3, or was rotated before; or the two
            are not for one model.
    """
    start, source, target = time.perf_counter(), Path(draft), Path(out)
    for folder in (source, Path(artifact)):
        check_apart(target, folder)
    check_output(target, overwrite)
    r1 = residual_rotation(Artifact.open(Path(artifact), digests_named(digests)))
    require(source.is_dir(), f"no such draft: {source} (expected a folder with config.json and weights)")
    check_folder(source)
    config = read_object(source / CONFIG_NAME)
    require(MARK not in config, f"{source} is rotated already: expected the draft as it was trained")
    tensors = open_weights(source, allow_pickle)
    changed = rotated_tensors(tensors, r1)
    with output_folder(target, overwrite) as folder:
        everything = {name: changed.get(name, tensors.load(name)) for name in tensors.shapes()}
        save_tensors(folder / SAFETENSORS.single, everything)
        for name in small_files(entry.name for entry in source.iterdir()):
            if name not in (CONFIG_NAME, SAFETENSORS.index):
                shutil.copyfile(source / name, folder / name)
        save_json(folder / CONFIG_NAME, config | {MARK: digest_of_tensors({"r1": r1})})
    own = any(name.endswith("embed_tokens.weight") for name in everything)
    whose = "draft" if own else "artifact"
    return DraftResult(str(out), sorted(changed), whose, time.perf_counter() - start)


def residual_rotation(artifact: Artifact) -> Tensor:
    """The one R1 of an artifact [hidden, hidden] float64.

    Raises:
        InputError: it has none, or one a layer, or its hidden states differ from the model's by more than R1.
    """
    path, family = artifact.rotations(), artifact.architecture
    r1 = Rotations.load(path).r1 if path is not None else ()
    require(
        bool(r1),
        f"{artifact.folder} has no R1: expected one that has, beside this one a draft of EAGLE-3 works as it is",
    )
    require(
        len(r1) == 1,
        f"{artifact.folder} changes the basis after each layer (rotations.r1.strategy): expected one R1, such as "
        "rotations.r1.strategy=pooled makes",
    )
    require(
        not family.norm.subtracts_mean,
        f"{artifact.folder} is a {family.model_type}, whose hidden states are without their mean in an artifact, and a "
        "draft reads it: expected a family with RMSNorms",
    )
    return r1[0]


def rotated_tensors(tensors: StoredTensors, r1: Tensor) -> dict[str, Tensor]:
    """The tensors of a draft that change, for hidden states x R1 in place of x.

    fc [h, n · hidden], which reads n hidden states: each block of columns becomes W R1. A draft without a token
    embedding is lent the artifact's, whose rows are rotated too: the gain of the norm behind it goes into what reads
    it, and then R1.

    Args:
        tensors: the draft's.
        r1: [hidden, hidden].

    Raises:
        InputError: it is no draft of EAGLE-3, or reads hidden states of another size.
    """
    shapes = tensors.shapes()
    prefix = _checked_prefix(shapes)
    size, fc = len(r1), f"{prefix}fc.weight"
    columns = shapes[fc][-1]
    require(
        columns % size == 0,
        f"{fc} reads {columns} numbers, and the artifact's hidden states have {size}: expected the draft of this model",
    )
    blocks = tensors.load(fc).split(size, dim=1)
    merged = torch.cat([rotate_rows(block, r1) for block in blocks], dim=1)
    changed = {fc: merged.to(tensors.dtype(fc))}
    if f"{prefix}embed_tokens.weight" in shapes:
        return changed
    return changed | _reading_rotated_embeddings(tensors, prefix, r1)


def _checked_prefix(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """What stands before the names of a draft of EAGLE-3. Raises InputError where it is another model."""
    expected = "expected a draft of EAGLE-3"
    for name in sorted(shapes):
        require(
            TOGETHER.search(name) is None,
            f"tensor {name} is of a layer for multi-token prediction, which reads the output of the model's final "
            f"norm, and the gain of that norm is in an artifact's head: {expected}",
        )
        require(KNOWN.fullmatch(name) is not None, f"tensor {name} is none that such a draft has: {expected}")
    require(
        any(name.endswith("hidden_norm.weight") for name in shapes),
        f"the draft has no hidden_norm, so it is one of EAGLE or EAGLE-2, which reads and predicts the output of "
        f"the model's final norm, and the gain of that norm is in an artifact's head: {expected}",
    )
    prefixes = [prefix for prefix in ("", "model.") if f"{prefix}fc.weight" in shapes]
    require(bool(prefixes), f"the draft has no fc.weight, with which it would mix hidden states: {expected}")
    require(
        any(name.endswith("lm_head.weight") for name in shapes),
        f"the draft has no lm_head.weight and would use the artifact's, which reads rotated states: {expected} "
        "with one",
    )
    return prefixes[0]


def _reading_rotated_embeddings(tensors: StoredTensors, prefix: str, r1: Tensor) -> dict[str, Tensor]:
    """The first layer's norm of embeddings with a gain of 1, and the columns behind it with gain and R1."""
    shapes, size = tensors.shapes(), len(r1)
    first = next(each for each in (f"{prefix}midlayer.", f"{prefix}layers.0.") if f"{each}hidden_norm.weight" in shapes)
    norm = f"{first}input_layernorm.weight"
    require(
        shapes.get(norm) == (size,),
        f"the draft has no token embedding of its own, and {norm} is not of the artifact's hidden size {size}: "
        "expected a draft with embed_tokens.weight, or of this model",
    )
    gain, changed = tensors.load(norm), {norm: torch.ones_like(tensors.load(norm))}
    for name in (f"{first}self_attn.{reader}.weight" for reader in READERS):
        if name not in shapes:
            continue
        weight = tensors.load(name)
        columns = rotate_rows(scale_input(weight[:, :size], gain), r1)
        changed[name] = torch.cat([columns.to(weight), weight[:, size:]], dim=1)
    require(len(changed) > 1, f"the draft has none of {', '.join(READERS)} in {first}self_attn: expected one")
    return changed
