"""Networks for inference: neighbours folded and fused."""

from sparseconv.inference.optimize import InferenceBlock, optimize_for_inference

__all__ = ["InferenceBlock", "optimize_for_inference"]
