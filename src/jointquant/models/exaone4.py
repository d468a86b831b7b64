"""EXAONE 4: as OLMo 2, with norms on q and k per head, and no rotary embeddings in the layers without a window."""

from dataclasses import replace

from jointquant.models import olmo2

ARCHITECTURE = replace(olmo2.ARCHITECTURE, model_type="exaone4")
