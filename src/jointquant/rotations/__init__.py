"""Orthogonal rotations: each acts on row vectors as x -> x R with R orthogonal."""
