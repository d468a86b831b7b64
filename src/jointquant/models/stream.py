"""A model as a stream of decoder layers: the whole of it on the meta device, one layer materialised at a time."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from jointquant.backend.background import worker
from jointquant.backend.operations import HOST
from jointquant.backend.page_locked import copied, placed
from jointquant.backend.products import hasten
from jointquant.errors import require
from jointquant.models.architecture import Architecture
from jointquant.models.configuration import empty_model, read_config
from jointquant.models.contents import AsNamed, check_contents, own_head
from jointquant.models.dequantized import Dequantized, form_of
from jointquant.models.drafts import Drafts
from jointquant.models.expert_tensors import ExpertTensors
from jointquant.models.experts import take_apart
from jointquant.models.frontend import Frontend
from jointquant.models.layer import Place, head_dim_of, text_config_of
from jointquant.models.pickles import PickleCheckpoint
from jointquant.models.registry import architecture_of
from jointquant.models.source import Checkpoint, InMemory, StoredTensors, TensorSource
from jointquant.trust.shard_index import PICKLE, SAFETENSORS, has_weights


class ModelStream:
    """The decoder layers of one model, in order, from shards or from memory.

    Args:
        source: the tensors as they are stored.
        config: the model's configuration (copied).
        attn_implementation: the attention function, by its name in transformers' registry; None: transformers' choice.

    Raises:
        InputError: unknown architecture, a variant of it that is not supported, or tensors that are missing,
            unexpected or misshapen.

    Attributes:
        stored: the tensors as they are stored.
        source: the tensors under the names that the model has for them, its experts apart.
        config: of the text model.
        own_head: whether the output head is a matrix of its own, and not the token embedding.
        left_aside: the names of tensors that the model has no place for, such as those of layers that draft.
        drafts: those layers.
    """

    own_head = True
    drafts = Drafts()

    def __init__(self, source: StoredTensors, config: PretrainedConfig, attn_implementation: str | None = None) -> None:
        self.stored = source
        self.architecture: Architecture = architecture_of(config.model_type)
        self.architecture.check(config)
        config = copy.deepcopy(config)
        config._attn_implementation = attn_implementation
        self.skeleton: PreTrainedModel = empty_model(config)
        named, apart = AsNamed(source, self.skeleton, self.architecture), self.architecture.mixture is not None
        self.source: TensorSource = ExpertTensors(named, self.architecture) if apart else named
        take_apart(self.skeleton, self.architecture)
        hasten(self.skeleton)
        self.config = text_config_of(self.skeleton.config)
        self.num_layers = len(self.skeleton.get_submodule(self.architecture.layers))
        self._check_heads()
        self.left_aside = check_contents(self.source, self.skeleton, self.architecture)
        self.drafts = Drafts.of(named, self.skeleton, self.architecture)
        self.own_head = own_head(self.source, self.architecture, self.skeleton.config)

    def _check_heads(self) -> None:
        """R2 acts on the values' rows head by head, so the head counts read off the configuration must be right."""
        rope = getattr(self.config, "rope_parameters", None) or {}
        paired = bool(rope) and "partial_rotary_factor" not in rope
        require(
            not paired or self.head_dim % 2 == 0,
            f"head_dim is {self.head_dim} in this model: rotary embeddings turn channels in pairs, expected an even "
            "number",
        )
        values = ((index, self.architecture_of(index).value) for index in range(self.num_layers))
        first, value = next((found for found in values if found[1] is not None), (0, None))
        if value is None:
            return
        linear = self.skeleton.get_submodule(f"{self.architecture.layer_prefix(first)}.{value.linear}")
        assert isinstance(linear, nn.Linear)
        heads, kv_heads = int(self.config.num_attention_heads), self.num_key_value_heads
        want = value.out_features(heads * self.head_dim, kv_heads * self.head_dim)
        require(
            linear.out_features == want,
            f"{value.linear} has {linear.out_features} outputs: {heads} heads and {kv_heads} KV heads "
            f"of size {self.head_dim} in the configuration make it {want}",
        )

    @property
    def head_dim(self) -> int:
        """Size of one attention head."""
        return head_dim_of(self.config)

    @property
    def num_key_value_heads(self) -> int:
        """Number of KV heads (the number of heads where the configuration names none)."""
        return int(getattr(self.config, "num_key_value_heads", None) or self.config.num_attention_heads)

    def architecture_of(self, index: int) -> Architecture:
        """That of decoder layer ``index``, which names its experts one by one."""
        return self.architecture.of_layer(self.skeleton.get_submodule(self.architecture.layer_prefix(index)))

    @property
    def stored_dtype(self) -> torch.dtype:
        """The dtype the weights are stored in."""
        return self.source.dtype(f"{self.architecture.embeddings[0]}.weight")

    def layer(self, index: int, place: Place) -> nn.Module:
        """Decoder layer ``index``, materialised afresh at ``place``."""
        return self._filled(self.architecture.layer_prefix(index), self.read_layer(index, place.device), place)

    def layers(self, place: Place, start: int = 0) -> Iterator[tuple[int, nn.Module]]:
        """The decoder layers from ``start`` on, each with its number; the next one is read while one is in use.

        It is read into memory that an accelerator copies from by itself, so that nobody waits for what is sent.
        A caller that lets go of a layer before it asks for the next has two layers in memory at most.
        """
        with worker("read ahead") as pool:
            ahead = pool.submit(self.read_layer, start, place.device) if start < self.num_layers else None
            for index in range(start, self.num_layers):
                assert ahead is not None
                tensors = ahead.result()
                more = index + 1 < self.num_layers
                ahead = pool.submit(self.read_layer, index + 1, place.device) if more else None
                yield index, self._filled(self.architecture.layer_prefix(index), tensors, place)

    def read_layer(self, index: int, device: torch.device = HOST) -> dict[str, Tensor]:
        """Copies of a layer's tensors, on the CPU and in their stored dtype, by their names in the layer.

        ``device`` is where they will be sent.
        """
        prefix = self.architecture.layer_prefix(index)
        names = self.skeleton.get_submodule(prefix).state_dict()
        # Copies: views into a mapped file have any alignment, and sums over them round differently.
        return {name: copied(self.source.load(f"{prefix}.{name}"), device) for name in names}

    def final_norm(self, place: Place) -> nn.Module:
        """The norm before the head."""
        name = self.architecture.final_norm
        norm = self.skeleton.get_submodule(name)
        return self._filled(name, {key: self.source.load(f"{name}.{key}").clone() for key in norm.state_dict()}, place)

    def head(self, place: Place) -> nn.Module:
        """The output head; a tied one is materialised as a matrix of its own."""
        name = self.architecture.head
        names = {key: f"{name}.{key}" for key in self.skeleton.get_submodule(name).state_dict()}
        if not self.own_head:
            names["weight"] = f"{self.architecture.embeddings[0]}.weight"
        return self._filled(name, {key: self.source.load(full).clone() for key, full in names.items()}, place)

    def frontend(self, place: Place) -> Frontend:
        """Everything before the first decoder layer, materialised; fused norms ask for ``centre_embeddings``."""
        frontend = Frontend(self.skeleton, self.architecture, place)
        names = {name: f"{frontend.root}.{name}" for name in frontend.backbone.state_dict()}
        # Copies, as in ``read_layer``.
        frontend.fill({name: self.cast(name, self.source.load(full).clone(), place) for name, full in names.items()})
        self.prepare(frontend)
        frontend.backbone.to(place.device).eval().requires_grad_(False)
        return frontend

    def cast(self, name: str, tensor: Tensor, place: Place) -> Tensor:
        """A tensor of the source as it is computed with; ``name`` is that within its module."""
        return placed(tensor, place.device, place.dtype)

    def prepare(self, frontend: Frontend) -> None:
        """What kind of stream needs more done to the embeddings: the model's own are as they are stored."""

    def _filled(self, name: str, tensors: dict[str, Tensor], place: Place) -> nn.Module:
        """The module called ``name`` with ``tensors``, which are used up."""
        configs = {id(each): each for each in (self.skeleton.config, self.config)}
        fresh = copy.deepcopy(self.skeleton.get_submodule(name), configs)
        placed = {key: self.cast(key, tensors.pop(key), place) for key in list(tensors)}
        fresh.load_state_dict(placed, assign=True)
        return fresh.to(place.device).eval().requires_grad_(False)


def open_stream(
    model: str | Path | PreTrainedModel, attn_implementation: str | None = None, allow_pickle: bool = False
) -> ModelStream:
    """The stream of a model folder or of a model in memory.

    Args:
        model: the folder or the model.
        attn_implementation: as for :class:`ModelStream`.
        allow_pickle: read pickle weights where there are no others.

    Raises:
        InputError: no such folder, no configuration, no weights, or a model that is already quantized, but for those
            that ``dequantized`` reads.
    """
    if isinstance(model, PreTrainedModel):
        config = model.config
        source: StoredTensors = InMemory(model)
    else:
        folder = Path(model)
        config = read_config(folder)
        architecture_of(config.model_type)
        source = open_weights(folder, allow_pickle)
    settings = getattr(config, "quantization_config", None)
    if settings is not None:
        source, config = Dequantized(source, form_of(settings)), copy.deepcopy(config)
        del config.quantization_config
    return ModelStream(source, config, attn_implementation)


def open_weights(folder: Path, allow_pickle: bool = False) -> StoredTensors:
    """The weights of a model folder: safetensors, or pickles where there is nothing else and the user allows them.

    Raises:
        InputError: no weights, broken ones, or pickles that nobody allowed.
    """
    adapter = folder / "adapter_config.json"
    require(not adapter.exists(), f"{adapter} is of an adapter on top of a model: expected the two merged into one")
    if has_weights(folder, SAFETENSORS) or not has_weights(folder, PICKLE):
        return Checkpoint(folder)
    require(
        allow_pickle,
        f"{folder} has only pickle weights, which are programs: expected {SAFETENSORS.single} or {SAFETENSORS.index}, "
        "or `allow_pickle=True` if you trust who made them",
    )
    return PickleCheckpoint(folder)
