"""Export trained networks as C99 code without dependencies, for microcontrollers."""

from sparseconv.edge.export import export_c

__all__ = ["export_c"]
