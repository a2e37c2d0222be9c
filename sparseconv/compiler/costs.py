"""What operations save in lanes, and what converting tensors costs, in nanoseconds.

Each number is for one element, without and with gradients. They are about the smallest ones that
were measured at five shapes between 1 x 64 x 512 and 16 x 128 x 128 (float32, density 10 %, one
thread of an Intel Xeon with AVX-512, 2026-11-29). Elsewhere more is saved: an error leaves an
operation outside rather than making it slower.
"""

from __future__ import annotations

CONVERSION = (0.4, 0.8)  # in one direction
GAINS = {
    "sparse": (0.4, 1.3),
    "pointwise": (0.0, 1.0),
    "norm": (0.1, 1.8),  # with the ReLU after it
    "max_pool": (0.1, 14.0),
    "mean": (0.0, 0.0),
    "cat": (0.0, 0.0),
    "elementwise": (0.0, 0.0),
}
