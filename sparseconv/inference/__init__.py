"""Make networks faster in inference by folding and fusing layers."""

from sparseconv.inference.optimize import InferenceBlock, optimize_for_inference

__all__ = ["InferenceBlock", "optimize_for_inference"]
