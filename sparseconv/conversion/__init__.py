"""Convert layers to sparse ones where that is faster, and back to dense ones."""

from sparseconv.conversion.converter import convert
from sparseconv.conversion.dense import to_dense
from sparseconv.conversion.report import Conversion, ConversionReport

__all__ = [
    "Conversion",
    "ConversionReport",
    "convert",
    "to_dense",
]
