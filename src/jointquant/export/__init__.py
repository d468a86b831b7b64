"""Artifacts in the formats of other runtimes: each export holds all of the model, or is refused."""
