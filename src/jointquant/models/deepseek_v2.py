"""DeepSeek V2: as V3, with experts chosen by a softmax; the Lite models have no latent of the queries."""

from dataclasses import replace

from jointquant.models import deepseek_v3

ARCHITECTURE = replace(deepseek_v3.ARCHITECTURE, model_type="deepseek_v2")
