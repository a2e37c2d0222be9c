"""The registered ops and what runs them: schemas, backends, plans, Triton's kernels."""

from sparseconv.ops import schemas

__all__ = ["schemas"]  # importing it registers the ops
