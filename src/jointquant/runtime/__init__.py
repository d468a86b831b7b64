"""What runs a quantized model: its modules, its attention, and its place in transformers."""
