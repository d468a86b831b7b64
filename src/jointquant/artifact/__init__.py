"""The folder that ``quantize`` writes: what it holds, where it loads, what its card says."""
