"""What operations save in lanes, and what converting tensors costs; measured in nanoseconds."""

from __future__ import annotations

# For each element that is converted in one direction, without and with gradients.
CONVERSION = (0.25, 0.6)
# For each element of an operation's output, without and with gradients.
GAINS = {
    "sparse": (0.3, 1.0),
    "pointwise": (0.3, 1.0),
    "norm": (0.3, 1.0),
    "max_pool": (0.5, 16.0),
    "mean": (0.0, 0.0),
    "cat": (0.0, 0.0),
    "elementwise": (0.0, 0.0),
}
