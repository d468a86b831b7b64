"""gpt-oss (in bfloat16): a sink beside each query's scores, biases everywhere, experts with a limited gate."""

from jointquant.models.architecture import Architecture, FusedExperts, Mixture
from jointquant.models.requirements import AbsoluteScores

ARCHITECTURE = Architecture(
    model_type="gpt_oss",
    up_activation="swiglu_limit",
    absolute_scores=AbsoluteScores("has a sink beside the scores of a query", sums_to_one=False),
    mixture=Mixture(
        router="mlp.router",
        fused=FusedExperts(transposed=True, interleaved=True, biases=True, limit="limit", stored=True),
    ),
)
