"""Quantizers as pure functions: tensors in, tensors out; nothing here knows a model."""
