"""What a sparse convolution is: patterns, geometry and the checks of both; no kernels."""
