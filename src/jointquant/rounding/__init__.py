"""Pass 2: layer by layer, rotations are merged, inputs and cache calibrated, weights rounded, shards written."""
