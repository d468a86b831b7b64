"""GLM-4.7 Flash: latents as in DeepSeek V3, experts as in GLM-4.5."""

from dataclasses import replace

from jointquant.models import deepseek_v3

ARCHITECTURE = replace(deepseek_v3.ARCHITECTURE, model_type="glm4_moe_lite")
