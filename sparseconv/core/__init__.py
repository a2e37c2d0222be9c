"""Define patterns, geometry, files and argument checks, but no kernels."""
