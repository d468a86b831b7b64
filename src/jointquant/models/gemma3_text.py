"""Gemma 3 (text): as Gemma 2, uncapped, with norms on q and k per head and a rotary base of its own in local layers."""

from dataclasses import replace

from jointquant.models import gemma2

ARCHITECTURE = replace(gemma2.ARCHITECTURE, model_type="gemma3_text")
