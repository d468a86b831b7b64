"""compressed-tensors: integers, scales and zero points as they are, R4 as a transform."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from jointquant.artifact.obstacles.compressed import INT4, few_bits_in_vllm
from jointquant.export.artifact import PACKED, Artifact
from jointquant.export.vllm_options import GUARDS
from jointquant.models.expert_tensors import stored_name
from jointquant.quantization.integer import IntFormat
from jointquant.quantization.packing import pack

INT_QUANTIZED, PACK_QUANTIZED, MIXED = "int-quantized", "pack-quantized", "mixed-precision"
ELSEWHERE = "run it in vLLM, or the native artifact after pip install jointquant"
REFUSED_BY_TRANSFORMERS = f"none: R4 is online here; {ELSEWHERE}"
COMPUTED_BY_VLLM = f"none: its inputs or its cache have vLLM's 4 bits; {ELSEWHERE}"
EXPERTS = r"re:.*\.experts\.\d+\..*"
"""Target of all experts' linears."""


@dataclass(frozen=True)
class Scheme:
    """How a linear is quantized: its weight, and its input or None."""

    weights: IntFormat
    inputs: IntFormat | None

    @property
    def format(self) -> str:
        """Beside inputs of 8 bits runtimes take a plain int8 weight; others unpack as they go, or multiply 4 bits."""
        return INT_QUANTIZED if self.inputs is not None and self.inputs.num_bits > INT4 else PACK_QUANTIZED

    @property
    def dequantizes(self) -> bool:
        """Whether transformers dequantizes while it loads: it cannot make room for packed zero points.

        It computes in the dtype of the scales, so they are stored in float32, which holds them exactly.
        """
        return self.format == PACK_QUANTIZED and not self.weights.symmetric

    def group(self, targets: list[str]) -> dict[str, Any]:
        """The group of a configuration that gives this scheme to ``targets``."""
        weights: dict[str, Any] = {"num_bits": self.weights.num_bits, "symmetric": self.weights.symmetric}
        size = self.weights.group_size
        weights |= {"strategy": "channel" if size is None else "group", "group_size": size}
        inputs: dict[str, Any] | None = None
        if self.inputs is not None:
            inputs = {"num_bits": self.inputs.num_bits, "symmetric": self.inputs.symmetric}
            inputs |= {"strategy": "token", "dynamic": True}
        return {"targets": targets, "weights": weights, "input_activations": inputs, "format": self.format}


def scheme_of(artifact: Artifact, module: str) -> Scheme | None:
    """The scheme of a linear, by its full name; None where it is not quantized."""
    weights = artifact.format_of(module)
    if weights is None:
        return None
    assert isinstance(weights, IntFormat)
    inputs = None if module == artifact.architecture.head else artifact.recipe.activations_of(module).format
    return Scheme(weights, inputs)


def compressed_shards(artifact: Artifact) -> Iterator[dict[str, Tensor]]:
    """The artifact's tensors, shard by shard, in the layout of each linear's scheme."""
    for modules in artifact.shards():
        shard: dict[str, Tensor] = {}
        for module in modules:
            scheme = scheme_of(artifact, module)
            for name, full_name in artifact.tensors_of(module).items():
                if scheme is None or name not in PACKED or scheme.format == PACK_QUANTIZED:
                    tensor = artifact.load(full_name)
                    dequantizes = scheme is not None and scheme.dequantizes and name == "weight_scale"
                    shard[full_name] = tensor.float() if dequantizes else tensor
            if scheme is not None and scheme.format == PACK_QUANTIZED:
                shard[f"{module}.weight_shape"] = torch.tensor(artifact.shape(module), dtype=torch.int64)
            elif scheme is not None:
                shard |= {f"{module}.{name}": tensor for name, tensor in _as_int8(artifact, module).items()}
        yield {stored_name(artifact.architecture, name): tensor for name, tensor in shard.items()}
    yield from artifact.draft_shards()


def _as_int8(artifact: Artifact, module: str) -> dict[str, Tensor]:
    weight = artifact.quantized_weight(module)
    tensors = {"weight": weight.codes, "weight_scale": weight.scale}
    return tensors | ({"weight_zero_point": weight.zero_point} if weight.fmt.has_zero_point else {})


def quantization_config(artifact: Artifact) -> dict[str, Any]:
    """The ``quantization_config`` of config.json, checked by compressed-tensors' own classes."""
    import compressed_tensors  # slow to import
    from compressed_tensors.quantization import QuantizationConfig, QuantizationStatus

    groups, ignored = _groups(artifact)
    formats = {scheme.format for scheme in groups}
    config = QuantizationConfig(
        config_groups={f"group_{i}": scheme.group(names) for i, (scheme, names) in enumerate(groups.items())},
        quantization_status=QuantizationStatus.COMPRESSED,
        format=formats.pop() if len(formats) == 1 else MIXED,
        ignore=ignored,
    )
    data: dict[str, Any] = config.model_dump(mode="json")
    data |= {"version": compressed_tensors.__version__, "transform_config": transform_config(artifact)}
    return data | ({"dequantize": True} if any(scheme.dequantizes for scheme in groups) else {})


def _groups(artifact: Artifact) -> tuple[dict[Scheme, list[str]], list[str]]:
    """The targets of each scheme, and the linears that have none, by their names in checkpoints.

    Layers that draft are one pattern each: a runtime builds their linears too, some of them several in one, and would
    look for packed weights.
    """
    by_scheme: dict[Scheme, list[str]] = {}
    ignored = list(artifact.kept)
    for name in (*artifact.linears, artifact.architecture.head):
        scheme = scheme_of(artifact, name)
        if scheme is None:
            ignored.append(name)
        else:
            by_scheme.setdefault(scheme, []).append(stored_name(artifact.architecture, name))
    ignored = [stored_name(artifact.architecture, name) for name in ignored]
    ignored += [rf"re:{re.escape(module)}\..*" for module in artifact.drafts.modules]
    if len(by_scheme) < 2:
        return {scheme: ["Linear"] for scheme in by_scheme}, ignored
    return {scheme: _patterned(artifact, scheme, names) for scheme, names in by_scheme.items()}, ignored


def _patterned(artifact: Artifact, scheme: Scheme, names: list[str]) -> list[str]:
    """The targets of a scheme; all experts by one pattern, by which transformers finds their scheme among several."""
    experts = artifact.facts.experts
    if not experts or scheme_of(artifact, experts[0]) != scheme:
        return names
    routed = {stored_name(artifact.architecture, name) for name in experts}
    return [EXPERTS, *(name for name in names if name not in routed)]


def transform_config(artifact: Artifact) -> dict[str, Any]:
    """R4 as a transform of the down projection's input; its inverse is in the weight. Empty where there is no R4."""
    if not artifact.facts.r4:
        return {}
    (transform,) = artifact.facts.r4  # of several sizes only in mixtures, whose R4 no runtime applies
    from compressed_tensors.transform import TransformArgs, TransformConfig, TransformScheme

    down = f"re:.*{re.escape(artifact.architecture.down)}$"
    scheme = TransformScheme(
        type="hadamard",
        head_dim=transform.block_size if transform.is_block_diagonal else None,
        apply=[TransformArgs(targets=[down], location="input")],
    )
    data: dict[str, Any] = TransformConfig(config_groups={"R4": scheme}).model_dump(mode="json")
    return data


def compressed_config(artifact: Artifact) -> dict[str, Any]:
    """config.json of the export; its key ``jointquant`` keeps what ``--format native`` needs to undo it."""
    why = (
        REFUSED_BY_TRANSFORMERS if artifact.facts.r4 else COMPUTED_BY_VLLM if few_bits_in_vllm(artifact.facts) else None
    )
    guards = dict.fromkeys(GUARDS, why) if why else {}
    data = artifact.plain_config | guards | {"jointquant": artifact.described}
    if any(artifact.format_of(name) is not None for name in (*artifact.linears, artifact.architecture.head)):
        data["quantization_config"] = quantization_config(artifact)
    return data


def native_tensors(tensors: dict[str, Tensor], packed: dict[str, tuple[int, torch.dtype]]) -> dict[str, Tensor]:
    """The inverse of ``compressed_shards`` on one shard.

    Args:
        tensors: the shard.
        packed: of each packed module, by its full name, the width of its integers and the dtype of its scales.
    """
    native: dict[str, Tensor] = {}
    for full_name, tensor in tensors.items():
        module, _, name = full_name.rpartition(".")
        bits, scales = packed.get(module, (0, tensor.dtype))
        if name == "weight_scale":
            native[full_name] = tensor.to(scales)
        elif not bits or tensor.dtype not in (torch.int8, torch.int64):
            native[full_name] = tensor
        elif name == "weight":
            native[f"{module}.weight_packed"] = pack(tensor, bits)
        elif name == "weight_zero_point":
            native[full_name] = pack(tensor, bits, dim=0)
    return native
