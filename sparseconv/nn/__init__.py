"""Modules for sparse convolutions: the layer, its state, and sequences of modules."""
