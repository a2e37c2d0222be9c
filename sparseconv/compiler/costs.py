"""What operations save in lanes or rows, and what converting tensors costs, in nanoseconds.

Each number is for one element, without and with gradients. They are about the smallest ones that
were measured at five shapes between 1 x 64 x 512 and 16 x 128 x 128 (float32 at density 10 %,
bfloat16 in blocks at 20 %, one thread of an Intel Xeon with AVX-512 BF16, 2026-11-29). Elsewhere
more is saved: an error leaves an operation outside rather than making it slower. Crops, upsampling,
average pooling, ELU and gates were measured in float32 on an AMD EPYC with AVX-512 (2026-11-30,
1 x 20 x 67200 to 16 x 64 x 512), but not the gradients of upsampling and average pooling; those and
bfloat16's are estimates. So are casts, products and idle channels, and in rows what a convolution
and BatchNorm save in training: with them, the faster order is found for the networks of
``benchmarks/studies`` on that AMD EPYC.
"""

from __future__ import annotations

Nanoseconds = tuple[float, float]
_LANES: dict[str, Nanoseconds] = {
    "conversion": (0.4, 0.8),  # in one direction
    "cast": (0.25, 0.5),  # between bfloat16 and float32, in addition
    "product": (-0.013, -0.04),  # a multiply-add in float32 instead of bfloat16
    "sparse": (0.4, 1.3),
    "pointwise": (0.0, 1.0),
    "norm": (0.1, 1.8),  # with the ReLU after it
    "max_pool": (0.1, 4.0),  # against the op outside, whose gradient is faster than torch's
    "dropout": (8.0, 8.0),
    "crop": (-0.3, -0.6),  # outside, the result shares memory
    "upsample": (0.3, 0.6),
    "average_pool": (1.0, 2.0),
    "elu": (0.6, 0.8),
    "tanh": (2.0, 1.5),
    "glu": (0.1, 0.5),
    "gated_tanh": (2.5, 5.0),
}
_ROWS: dict[str, Nanoseconds] = {
    "idle": (-0.25, -0.5),  # for each position of a channel that only fills a panel
    "conversion": (0.25, 0.5),
    "sparse": (0.2, 0.5),
    "pointwise": (0.4, 0.5),
    "norm": (0.2, 0.6),
    "max_pool": (3.5, 10.0),
    "dropout": (8.0, 7.5),
    "crop": (-0.3, -0.6),
    "upsample": (0.3, 0.6),
    "average_pool": (1.0, 2.0),
}


def cost(what: str, in_rows: bool) -> Nanoseconds:
    """Return what a conversion costs, or what an operation saves in one of the two orders."""
    return (_ROWS if in_rows else _LANES).get(what, (0.0, 0.0))
