"""Patterns, geometry, files and checks of arguments; no kernels."""
