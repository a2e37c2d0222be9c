"""The registered ops and what runs them: schemas, backends, plans, Triton's kernels."""

from sparseconv.ops import fused_schemas, schemas

__all__ = ["fused_schemas", "schemas"]  # importing them registers the ops
