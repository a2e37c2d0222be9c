"""Provide a backend of ``torch.compile`` that keeps tensors in the kernels' memory order."""

from sparseconv.compiler.backend import sparseconv
from sparseconv.compiler.report import CompiledReport, GraphReport, compiled_report

__all__ = ["CompiledReport", "GraphReport", "compiled_report", "sparseconv"]
