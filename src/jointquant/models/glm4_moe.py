"""GLM-4.5 to 4.7: experts chosen by sigmoids, a correction and groups; one more that every token passes."""

from jointquant.models.architecture import Architecture, Mixture

ARCHITECTURE = Architecture(model_type="glm4_moe", mixture=Mixture(shared="mlp.shared_experts"))
