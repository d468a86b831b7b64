"""Mistral 4 (text): latents as in DeepSeek V3, queries that grow as in Ministral 3, experts chosen by a softmax."""

from dataclasses import replace

from jointquant.models import deepseek_v3

ARCHITECTURE = replace(deepseek_v3.ARCHITECTURE, model_type="mistral4")
