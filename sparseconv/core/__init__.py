"""Define patterns, geometry, files and checks of arguments, but no kernels."""
