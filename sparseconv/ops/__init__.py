"""Provide the registered ops: their schemas, backends and plans, and the Triton kernels."""

from sparseconv.ops import lanes, schemas

__all__ = ["lanes", "schemas"]  # importing them registers the ops, which the extension implements
