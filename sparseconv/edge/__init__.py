"""Trained networks as C99 without dependencies, for microcontrollers."""

from sparseconv.edge.export import export_c

__all__ = ["export_c"]
