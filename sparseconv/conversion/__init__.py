"""``convert``: sparse layers where they are faster; ``to_dense``: the way back."""

from sparseconv.conversion.dense import to_dense
from sparseconv.conversion.result import ConversionReport
from sparseconv.conversion.sparse import convert

__all__ = ["ConversionReport", "convert", "to_dense"]
