"""Provide the registered ops: their schemas, backends, plans and Triton's kernels."""

from sparseconv.ops import schemas

__all__ = ["schemas"]  # importing it registers the ops
