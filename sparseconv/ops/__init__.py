"""The registered ops and their implementations: schemas, backends, plans, Triton's kernels."""

from sparseconv.ops import schemas

__all__ = ["schemas"]  # importing it registers the ops
