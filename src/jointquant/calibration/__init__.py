"""Pass 1: what the unquantized model's activations say becomes rotations and scales."""
