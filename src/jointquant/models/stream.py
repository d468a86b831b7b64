"""A model as a stream of decoder layers: the whole of it on the meta device, one layer materialised at a time."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from jointquant.background import worker
from jointquant.errors import require
from jointquant.models.architecture import Architecture
from jointquant.models.configuration import empty_model, read_config
from jointquant.models.expert_tensors import ExpertTensors
from jointquant.models.experts import take_apart
from jointquant.models.pickles import PickleCheckpoint
from jointquant.models.registry import architecture_of
from jointquant.models.source import Checkpoint, InMemory, TensorSource
from jointquant.models.transforms import centre_embeddings
from jointquant.products import hasten
from jointquant.trust.shard_index import PICKLE, SAFETENSORS, has_weights

# Buffers that old checkpoints carry and that transformers computes itself.
LEGACY_BUFFERS = ("rotary_emb.inv_freq", "masked_bias")

LayerArguments = dict[str, Any]


@dataclass(frozen=True)
class Place:
    """Where a module is materialised, and in which dtype it computes."""

    device: torch.device
    dtype: torch.dtype


class ModelStream:
    """The decoder layers of one model, in order, from shards or from memory.

    Args:
        source: the tensors.
        config: the model's configuration (copied).
        attn_implementation: the attention function, by its name in transformers' registry; None: transformers' choice.

    Raises:
        InputError: unknown architecture, a variant of it that is not supported, or tensors that are missing,
            unexpected or misshapen.
    """

    def __init__(self, source: TensorSource, config: PretrainedConfig, attn_implementation: str | None = None) -> None:
        self.architecture: Architecture = architecture_of(config.model_type)
        apart = self.architecture.mixture is not None
        self.source: TensorSource = ExpertTensors(source, self.architecture) if apart else source
        self.architecture.check(config)
        self.config = copy.deepcopy(config)
        self.config._attn_implementation = attn_implementation
        self.skeleton: PreTrainedModel = empty_model(self.config)
        take_apart(self.skeleton, self.architecture)
        hasten(self.skeleton)
        self.config = self.skeleton.config
        self.num_layers = len(self.skeleton.get_submodule(self.architecture.layers))
        self._check_heads()
        self._check_tensors()

    def _check_heads(self) -> None:
        """R2 acts on the values' rows head by head, so the head counts read off the configuration must be right."""
        value = self.architecture.value
        linear = self.skeleton.get_submodule(f"{self.architecture.layer_prefix(0)}.{value.linear}")
        assert isinstance(linear, nn.Linear)
        heads, kv_heads = int(self.config.num_attention_heads), self.num_key_value_heads
        want = value.out_features(heads * self.head_dim, kv_heads * self.head_dim)
        require(
            linear.out_features == want,
            f"{value.linear} has {linear.out_features} outputs: {heads} heads and {kv_heads} KV heads "
            f"of size {self.head_dim} in the configuration make it {want}",
        )

    def _check_tensors(self) -> None:
        have = self.source.shapes()
        want = {name: tuple(tensor.shape) for name, tensor in self.skeleton.state_dict().items()}
        head = f"{self.architecture.head}.weight"
        for name, shape in want.items():
            if name == head and self.config.tie_word_embeddings:
                continue
            require(name in have, f"missing tensor {name}: the configuration expects it, shape {list(shape)}")
            require(
                have[name] == shape,
                f"tensor {name} has shape {list(have[name])}: the configuration expects {list(shape)}",
            )
            self.source.dtype(name)  # raises where it is none of floating point
        for name in have:
            require(
                name in want or name.endswith(LEGACY_BUFFERS),
                f"unexpected tensor {name}: a {self.config.model_type} model of this configuration has none",
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
        return self._filled(self.architecture.layer_prefix(index), self.read_layer(index), place)

    def layers(self, place: Place, start: int = 0) -> Iterator[tuple[int, nn.Module]]:
        """The decoder layers from ``start`` on, each with its number; the next one is read while one is in use.

        A caller that lets go of a layer before it asks for the next has two layers in memory at most.
        """
        with worker("read ahead") as pool:
            ahead = pool.submit(self.read_layer, start) if start < self.num_layers else None
            for index in range(start, self.num_layers):
                assert ahead is not None
                tensors = ahead.result()
                ahead = pool.submit(self.read_layer, index + 1) if index + 1 < self.num_layers else None
                yield index, self._filled(self.architecture.layer_prefix(index), tensors, place)

    def read_layer(self, index: int) -> dict[str, Tensor]:
        """Copies of a layer's tensors, on the CPU and in their stored dtype, by their names in the layer."""
        prefix = self.architecture.layer_prefix(index)
        names = self.skeleton.get_submodule(prefix).state_dict()
        # Copies: views into a mapped file have any alignment, and sums over them round differently.
        return {name: self.source.load(f"{prefix}.{name}").clone() for name in names}

    def final_norm(self, place: Place) -> nn.Module:
        """The norm before the head."""
        name = self.architecture.final_norm
        norm = self.skeleton.get_submodule(name)
        return self._filled(name, {key: self.source.load(f"{name}.{key}").clone() for key in norm.state_dict()}, place)

    def head(self, place: Place) -> nn.Module:
        """The output head; a tied one is materialised as a matrix of its own."""
        name = self.architecture.head
        names = {key: f"{name}.{key}" for key in self.skeleton.get_submodule(name).state_dict()}
        if self.config.tie_word_embeddings:
            names["weight"] = f"{self.architecture.embeddings[0]}.weight"
        return self._filled(name, {key: self.source.load(full).clone() for key, full in names.items()}, place)

    def frontend(self, place: Place) -> Frontend:
        """Everything before the first decoder layer, materialised."""
        return Frontend(self, place)

    def cast(self, name: str, tensor: Tensor, place: Place) -> Tensor:
        """A tensor of the source as it is computed with; ``name`` is that within its module."""
        return tensor.to(place.device, place.dtype)

    def prepare(self, frontend: Frontend) -> None:
        """What the walk needs done to the embeddings: norms that subtract the mean are fused on the way."""
        centre_embeddings(frontend, self.architecture)

    def _filled(self, name: str, tensors: dict[str, Tensor], place: Place) -> nn.Module:
        """The module called ``name`` with ``tensors``, which are used up."""
        fresh = copy.deepcopy(self.skeleton.get_submodule(name), {id(self.config): self.config})
        placed = {key: self.cast(key, tensors.pop(key), place) for key in list(tensors)}
        fresh.load_state_dict(placed, assign=True)
        return fresh.to(place.device).eval().requires_grad_(False)


class Frontend:
    """The model's own forward up to the first decoder layer: embeddings, positions, masks.

    The decoder layers are stand-ins that record what the model hands to each of them, so families whose layers
    differ (sliding windows, several rotary embeddings) need no code here. Where the family's norms subtract the mean,
    the embeddings are mean-centred: the norms see no difference, fused or not.
    """

    def __init__(self, stream: ModelStream, place: Place) -> None:
        architecture = stream.architecture
        root = architecture.layers.partition(".")[0]
        skeleton = stream.skeleton.get_submodule(root)
        layers = _relative(architecture.layers, root)
        norm = _relative(architecture.final_norm, root)
        memo: dict[int, Any] = {id(stream.config): stream.config}
        memo[id(skeleton.get_submodule(layers))] = nn.ModuleList(
            Recorder(layer) for layer in skeleton.get_submodule(layers)
        )
        memo[id(skeleton.get_submodule(norm))] = nn.Identity()
        self.root = root
        self.place = place
        self.backbone = copy.deepcopy(skeleton, memo)
        self.recorders: list[Recorder] = list(self.backbone.get_submodule(layers))
        names = list(self.backbone.state_dict())
        # Copies, as in ``read_layer``.
        tensors = {name: stream.cast(name, stream.source.load(f"{root}.{name}").clone(), place) for name in names}
        self.backbone.load_state_dict(tensors, assign=True)
        for module in self.backbone.modules():
            factor = getattr(module, "scalar_embed_scale", None)
            if factor is not None:  # as a model that is loaded in this dtype has it, not in that of the skeleton
                module.embed_scale = torch.tensor(factor, dtype=place.dtype)
        stream.prepare(self)
        self.backbone.to(place.device).eval().requires_grad_(False)

    def module(self, name: str) -> nn.Module:
        """A module of the frontend by its full name in the model."""
        return self.backbone.get_submodule(_relative(name, self.root))

    def replace(self, name: str, module: nn.Module) -> None:
        """Put another module in the place of one, by its full name in the model."""
        self.backbone.set_submodule(_relative(name, self.root), module)

    @torch.no_grad()
    def hidden_states(self, input_ids: Tensor) -> Tensor:
        """What reaches the first decoder layer: input_ids [windows, tokens] → [windows, tokens, hidden]."""
        self.backbone(input_ids=input_ids.to(self.place.device), use_cache=False)
        return self.recorders[0].take()[0]

    @torch.no_grad()
    def layer_arguments(self, input_ids: Tensor) -> list[LayerArguments]:
        """What each decoder layer receives besides its hidden states, for windows of the length of ``input_ids``.

        Taken from a single window, so that it broadcasts over any number of them.
        """
        self.backbone(input_ids=input_ids[:1].to(self.place.device), use_cache=False)
        return [recorder.take()[1] for recorder in self.recorders]


class Recorder(nn.Module):
    """Stands for a decoder layer: records its arguments and passes the hidden states through."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        for name, value in vars(layer).items():
            if isinstance(value, (str, int, float, bool)):
                setattr(self, name, value)  # e.g. attention_type, which some models read off their layers
        self._recorded: tuple[Tensor, LayerArguments] | None = None

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        """Record and pass through."""
        self._recorded = (hidden_states, kwargs)
        return hidden_states

    def take(self) -> tuple[Tensor, LayerArguments]:
        """The last call's hidden states and arguments; forgets them."""
        if self._recorded is None:
            raise RuntimeError("the model's forward never reached this decoder layer")
        recorded, self._recorded = self._recorded, None
        return recorded


def run_layer(layer: nn.Module, hidden_states: Tensor, arguments: LayerArguments) -> Tensor:
    """One decoder layer: [windows, tokens, hidden] → the same shape."""
    output = layer(hidden_states, **arguments)
    return output[0] if isinstance(output, tuple) else output


def head_dim_of(config: PretrainedConfig) -> int:
    """Size of one attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def inner_sizes_of(model: nn.Module, architecture: Architecture) -> tuple[int, ...]:
    """The sizes that the down projections of a whole model read, and R4 acts on: one, or several where experts differ
    from dense layers or from a shared expert. Taken from the modules: configurations name them variously.
    """
    sizes: set[int] = set()
    for layer in model.get_submodule(architecture.layers).children():
        for name in architecture.of_layer(layer).downs:
            down = layer.get_submodule(name)
            assert isinstance(down, nn.Linear)
            sizes.add(down.in_features)
    return tuple(sorted(sizes))


def open_stream(
    model: str | Path | PreTrainedModel, attn_implementation: str | None = None, allow_pickle: bool = False
) -> ModelStream:
    """The stream of a model folder or of a model in memory.

    Args:
        model: the folder or the model.
        attn_implementation: as for :class:`ModelStream`.
        allow_pickle: read pickle weights where there are no others.

    Raises:
        InputError: no such folder, no configuration, no weights, or a model that is already quantized.
    """
    if isinstance(model, PreTrainedModel):
        config = model.config
        source: TensorSource = InMemory(model)
    else:
        folder = Path(model)
        config = read_config(folder)
        architecture_of(config.model_type)
        source = open_weights(folder, allow_pickle)
    quantized = getattr(config, "quantization_config", None)
    require(quantized is None, "the model is already quantized: expected one in floating point")
    return ModelStream(source, config, attn_implementation)


def open_weights(folder: Path, allow_pickle: bool = False) -> TensorSource:
    """The weights of a model folder: safetensors, or pickles where there is nothing else and the user allows them.

    Raises:
        InputError: no weights, broken ones, or pickles that nobody allowed.
    """
    if has_weights(folder, SAFETENSORS) or not has_weights(folder, PICKLE):
        return Checkpoint(folder)
    require(
        allow_pickle,
        f"{folder} has only pickle weights, which are programs: expected {SAFETENSORS.single} or {SAFETENSORS.index}, "
        "or --allow-pickle (allow_pickle=True) if you trust who made them",
    )
    return PickleCheckpoint(folder)


def _relative(name: str, root: str) -> str:
    return name.removeprefix(f"{root}.")
