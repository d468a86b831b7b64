"""What a family that nobody has described yet is made of, found by watching a small copy of a model run."""
