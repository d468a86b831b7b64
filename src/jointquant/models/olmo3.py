"""OLMo 3: as OLMo 2, with sliding windows and a rotary scaling of its own in the other layers."""

from dataclasses import replace

from jointquant.models import olmo2

ARCHITECTURE = replace(olmo2.ARCHITECTURE, model_type="olmo3")
