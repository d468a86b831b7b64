"""Mixtral: as Mistral, with experts instead of one MLP; the router reads the residual stream as they do."""

from jointquant.models.architecture import Architecture, Mixture

ARCHITECTURE = Architecture(
    model_type="mixtral",
    mixture=Mixture(stored_block="block_sparse_moe", stored_projections=("w1", "w3", "w2")),
)
