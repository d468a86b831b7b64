"""Qwen 2 mixtures: experts, one more that every token passes and its gate, some layers dense; biases on q, k, v."""

from jointquant.models.architecture import Architecture, Mixture

ARCHITECTURE = Architecture(
    model_type="qwen2_moe",
    mixture=Mixture(shared="mlp.shared_expert", shared_gate="mlp.shared_expert_gate"),
)
