"""What keeps the result of a recipe out of a format, one module a format, and which change would let it in."""
