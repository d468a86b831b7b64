"""Qwen 3.5 mixtures (text): as Qwen 3.5, with experts, one more that every token passes, and its gate."""

from dataclasses import replace

from jointquant.models import qwen2_moe, qwen3_5_text

ARCHITECTURE = replace(qwen3_5_text.ARCHITECTURE, model_type="qwen3_5_moe_text", mixture=qwen2_moe.ARCHITECTURE.mixture)
