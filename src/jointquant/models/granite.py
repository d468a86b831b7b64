"""Granite 3: as Llama, with factors on embeddings, scores, residual sums and logits, through which rotations pass."""

from jointquant.models.architecture import Architecture
from jointquant.models.logits import Divided

ARCHITECTURE = Architecture(model_type="granite", logits=Divided("logits_scaling"))
