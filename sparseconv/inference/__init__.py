"""Networks for inference: neighbours folded and fused."""

from sparseconv.inference.optimize import (
    InferenceBlock,
    InferenceSequential,
    optimize_for_inference,
)

__all__ = ["InferenceBlock", "InferenceSequential", "optimize_for_inference"]
