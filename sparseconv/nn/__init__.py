"""Provide the sparse layer, its state, and sequences of modules."""
