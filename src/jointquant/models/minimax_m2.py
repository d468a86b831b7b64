"""MiniMax M2: experts chosen by sigmoids and a correction, rotary over half a head, norms on q and k over all heads."""

from jointquant.models.architecture import Architecture, Mixture

ARCHITECTURE = Architecture(
    model_type="minimax_m2",
    mixture=Mixture(stored_block="block_sparse_moe", stored_projections=("w1", "w3", "w2")),
)
