"""Define the convolutions as functions, with their checks, backends and gradients."""

from sparseconv.core.checks import ArgumentError
from sparseconv.core.geometry import DTYPES, PADDING_MODES, Geometry, resolve_padding
from sparseconv.functional.conv import sparse_conv1d, sparse_conv_transpose1d
from sparseconv.ops.checks import DtypeError

__all__ = [
    "DTYPES",
    "PADDING_MODES",
    "ArgumentError",
    "DtypeError",
    "Geometry",
    "resolve_padding",
    "sparse_conv1d",
    "sparse_conv_transpose1d",
]
