"""Convert layers to sparse ones where that is faster, and back to dense ones."""

from sparseconv.conversion.converter import Conversion, ConversionReport, convert, to_dense

__all__ = [
    "Conversion",
    "ConversionReport",
    "convert",
    "to_dense",
]
