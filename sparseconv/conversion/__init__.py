"""``convert``: sparse layers where they are faster; ``to_dense``: the way back."""

from sparseconv.conversion.converter import convert
from sparseconv.conversion.dense import to_dense
from sparseconv.conversion.report import Conversion, ConversionReport

__all__ = [
    "Conversion",
    "ConversionReport",
    "convert",
    "to_dense",
]
