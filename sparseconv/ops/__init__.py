"""Provide the registered ops: their schemas, backends and plans, and the Triton kernels."""

from sparseconv.ops import schemas

__all__ = ["schemas"]  # importing it registers the ops
