"""An artifact as a stream of decoder layers: to run one that is larger than memory."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor

from jointquant.backend.page_locked import placed
from jointquant.models.architecture import Architecture
from jointquant.models.configuration import empty_model, read_config
from jointquant.models.frontend import Frontend
from jointquant.models.layer import Place, text_config_of
from jointquant.models.options import DigestMode, digests_named
from jointquant.models.rehearsal import rehearse
from jointquant.models.source import Checkpoint
from jointquant.models.stream import ModelStream, open_stream
from jointquant.runtime.artifact_facts import check_recipe, is_artifact
from jointquant.runtime.attention import ATTENTION_NAME
from jointquant.runtime.embedding import PackedEmbedding
from jointquant.runtime.integration import (
    KEPT_DTYPES,
    JointQuantConfig,
    assembly_of,
    check_artifact,
)
from jointquant.runtime.tied_source import check_stored, source_of


class ArtifactStream(ModelStream):
    """The layers of an artifact, in order; what its run merged and rounded is in its tensors already.

    Args:
        folder: the artifact.
        mode: whether tensors are checked against their digests when they are read.

    Raises:
        InputError: no artifact, or files or tensors that are missing, misshapen, or not what was written.

    Attributes:
        r4: whether the input of the down projections is rotated online.
    """

    def __init__(self, folder: Path, mode: DigestMode) -> None:
        config = read_config(folder)
        digests = check_artifact(folder, config, mode)
        quantization = JointQuantConfig(**config.quantization_config)
        config = copy.deepcopy(config)
        config._attn_implementation = ATTENTION_NAME
        self.skeleton = empty_model(config)
        assembly = assembly_of(self.skeleton, quantization)
        self.try_out(assembly.architecture)
        with torch.device("meta"):
            assembly.install_model(self.skeleton)
        self.config = text_config_of(self.skeleton.config)
        self.architecture, self.r4 = assembly.architecture, bool(assembly.online.r4)
        stored = Checkpoint(folder, digests.tensors)
        check_stored(self.skeleton, quantization, stored)
        self.source = source_of(stored, quantization, digests)
        self.num_layers = len(self.skeleton.get_submodule(self.architecture.layers))
        check_recipe(quantization.parsed_recipe(), quantization.facts)

    def try_out(self, architecture: Architecture) -> None:
        """Raises InputError for a configuration whose model does not run."""
        rehearse(self.skeleton, architecture)

    @property
    def stored_dtype(self) -> torch.dtype:
        """Of what is not packed."""
        dtype = self.skeleton.config.dtype
        assert isinstance(dtype, torch.dtype)
        return dtype

    def cast(self, name: str, tensor: Tensor, place: Place) -> Tensor:
        """Integers and scales stay as they are stored."""
        kept = not tensor.is_floating_point() or name.endswith(KEPT_DTYPES)
        return placed(tensor, place.device, tensor.dtype) if kept else super().cast(name, tensor, place)

    def prepare(self, frontend: Frontend) -> None:
        """Packed embeddings learn which dtype is computed in."""
        embedding = frontend.module(self.architecture.embeddings[0])
        if isinstance(embedding, PackedEmbedding):
            embedding.like = torch.empty(0, dtype=frontend.place.dtype)


def open_any_stream(folder: Path, allow_pickle: bool = False, digests: DigestMode | None = None) -> ModelStream:
    """The stream of a model folder or of an artifact. Raises InputError for one that cannot run."""
    if is_artifact(folder):
        return ArtifactStream(folder, digests_named(digests))
    stream = open_stream(folder, ATTENTION_NAME, allow_pickle)
    rehearse(stream.skeleton, stream.architecture)
    return stream
