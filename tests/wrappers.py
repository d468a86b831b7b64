"""Tiny models that read images, and an image for each; sizes shrunk from published configurations, odd flags kept."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

from conftest import COMMON, HYBRID, MOE, MROPE, YARN

IMAGE, VIDEO, START, END = 2040, 2041, 2042, 2043
"""Tokens that stand for images, videos, and for where one begins and ends."""

PIXTRAL = {
    "model_type": "pixtral",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "head_dim": 16,
    "patch_size": 4,
    "image_size": 32,
    "hidden_act": "silu",
}
MISTRAL3 = {
    "image_token_index": IMAGE,
    "multimodal_projector_bias": False,
    "projector_hidden_act": "gelu",
    "spatial_merge_size": 2,
    "vision_feature_layer": -1,
    "vision_config": PIXTRAL,
}
QWEN = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": START, "vision_end_token_id": END}

TOWER: dict[str, object] = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "out_hidden_size": 48,
    "num_heads": 2,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
"""A tower of two layers, of which a merger makes vectors of the text model."""
QWEN35_VISION = TOWER | {"num_position_embeddings": 16}


@dataclass(frozen=True)
class Tiny:
    """A tiny model around a text model.

    Attributes:
        family: its ``model_type``.
        text: of its text model, what differs from ``COMMON``.
        whole: of the whole.
        image: its image, in what it reads of one; the image is four tokens.
    """

    family: str
    text: dict[str, object]
    whole: dict[str, object]
    image: dict[str, tuple[int, ...] | list[list[int]]]


TINY = {
    "gemma3": Tiny(
        "gemma3",
        {
            "model_type": "gemma3_text",
            "head_dim": 20,
            "query_pre_attn_scalar": 24,
            "sliding_window": 8,
            "sliding_window_pattern": 2,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        },
        {
            "image_token_index": IMAGE,
            "boi_token_index": START,
            "eoi_token_index": END,
            "mm_tokens_per_image": 4,
            "vision_config": {
                "model_type": "siglip_vision_model",
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "image_size": 16,
                "patch_size": 4,
                "vision_use_head": False,
            },
        },
        {"pixel_values": (1, 3, 16, 16)},
    ),
    "llava": Tiny(
        "llava",
        {"model_type": "llama"},
        {
            "image_token_index": IMAGE,
            "projector_hidden_act": "gelu",
            "vision_feature_layer": -2,
            "vision_feature_select_strategy": "default",
            "vision_config": {
                "model_type": "clip_vision_model",
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 3,
                "num_attention_heads": 2,
                "image_size": 16,
                "patch_size": 8,
                "projection_dim": 24,
            },
        },
        {"pixel_values": (1, 3, 16, 16)},
    ),
    "mistral3": Tiny(
        "mistral3",
        {"model_type": "mistral", "head_dim": 16, "sliding_window": None, "rope_theta": 1e9},
        MISTRAL3 | {"tie_word_embeddings": False},
        {"pixel_values": (1, 3, 16, 16), "image_sizes": [[16, 16]]},
    ),
    "mistral3, ministral3": Tiny(
        "mistral3",
        {"model_type": "ministral3", "head_dim": 16, "rope_parameters": YARN, "tie_word_embeddings": True},
        MISTRAL3 | {"tie_word_embeddings": True},
        {"pixel_values": (1, 3, 16, 16), "image_sizes": [[16, 16]]},
    ),
    "qwen2_vl": Tiny(
        "qwen2_vl",
        {
            "model_type": "qwen2_vl_text",
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 2, 2], "rope_theta": 1e6},
        },
        QWEN
        | {
            "vision_config": {
                "depth": 2,
                "embed_dim": 32,
                "hidden_size": 48,
                "mlp_ratio": 2,
                "num_heads": 2,
                "patch_size": 4,
                "spatial_merge_size": 2,
                "temporal_patch_size": 2,
            }
        },
        {"pixel_values": (16, 96), "image_grid_thw": [[1, 4, 4]]},
    ),
    "qwen2_5_vl": Tiny(
        "qwen2_5_vl",
        {
            "model_type": "qwen2_5_vl_text",
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 2, 2], "rope_theta": 1e6},
            "tie_word_embeddings": True,
        },
        QWEN
        | {
            "tie_word_embeddings": True,
            "vision_config": TOWER
            | {
                "window_size": 8,
                "fullatt_block_indexes": [1],
            },
        },
        {"pixel_values": (16, 96), "image_grid_thw": [[1, 4, 4]]},
    ),
    "qwen3_vl": Tiny(
        "qwen3_vl",
        {
            "model_type": "qwen3_vl_text",
            "head_dim": 16,
            "rope_parameters": {
                "rope_type": "default",
                "mrope_section": [4, 2, 2],
                "mrope_interleaved": True,
                "rope_theta": 5e6,
            },
        },
        QWEN
        | {
            "vision_config": {
                "depth": 3,
                "hidden_size": 32,
                "intermediate_size": 64,
                "out_hidden_size": 48,
                "num_heads": 2,
                "patch_size": 4,
                "spatial_merge_size": 2,
                "temporal_patch_size": 2,
                "num_position_embeddings": 16,
                "deepstack_visual_indexes": [0, 1],
            }
        },
        {"pixel_values": (16, 96), "image_grid_thw": [[1, 4, 4]]},
    ),
    "qwen3_5": Tiny(
        "qwen3_5",
        HYBRID | {"model_type": "qwen3_5_text", "rope_parameters": MROPE | {"mrope_interleaved": True}},
        QWEN | {"vision_config": QWEN35_VISION},
        {"pixel_values": (16, 96), "image_grid_thw": [[1, 4, 4]]},
    ),
    "qwen3_5_moe": Tiny(
        "qwen3_5_moe",
        HYBRID
        | MOE
        | {"model_type": "qwen3_5_moe_text", "rope_parameters": MROPE, "shared_expert_intermediate_size": 56},
        QWEN | {"vision_config": QWEN35_VISION},
        {"pixel_values": (16, 96), "image_grid_thw": [[1, 4, 4]]},
    ),
}


def make_wrapper(name: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A tiny model of random weights, norms and biases included."""
    tiny, generator = TINY[name], torch.Generator().manual_seed(0)
    config = AutoConfig.for_model(tiny.family, text_config=COMMON | tiny.text, **tiny.whole)
    model = AutoModelForImageTextToText.from_config(config, dtype=dtype).to(dtype).eval()
    for key, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        gain = parameter.ndim == 1 and key.endswith("weight")
        parameter.data = (1 + 0.3 * noise if gain else noise / 5).to(dtype)
    return model


def image_of(name: str, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """What a tiny model reads of a text of 20 tokens that has an image of four tokens in it."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 2000, (1, 20), generator=generator)
    ids[0, 4], ids[0, 5:9], ids[0, 9] = START, IMAGE, END
    kinds = (ids == IMAGE).long()
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    for key, shape in TINY[name].image.items():
        real = isinstance(shape, tuple)
        inputs[key] = torch.randn(*shape, generator=generator).to(dtype) if real else torch.tensor(shape)
    if name == "gemma3":
        inputs["token_type_ids"] = kinds
    if name.startswith("qwen"):
        inputs["mm_token_type_ids"] = kinds
    return inputs
