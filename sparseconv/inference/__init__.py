"""Networks for inference: neighbours folded and fused."""

from sparseconv.inference.optimize import optimize_for_inference

__all__ = ["optimize_for_inference"]
