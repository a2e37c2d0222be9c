"""Adaptive average pooling of short series, by whatever is fastest."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from sparseconv.core.tracing import outside_tracing
from sparseconv.functional.fused import adaptive_avg_pool1d, runs_here

POOLED = 50  # samples that are kept of any length


class ShortAvgPool1d(nn.AdaptiveAvgPool1d):
    """``nn.AdaptiveAvgPool1d``, by whatever is fastest.

    On the CPU that is ``functional.fused.adaptive_avg_pool1d`` ("kernel" below) from ``LEAST``
    elements on; below, and where it cannot run (torch.compile, autocast, half types), short series
    are multiplied by the averaging matrix.
    Forward and backward of 16 x 141 series on one thread of an AMD EPYC (Zen 5), in ms:

    ======  ======  =======  =======
    length  kernel  product  torch's
    ======  ======  =======  =======
    24        0.11     0.17      1.4
    128       0.16     0.74      1.5
    512       0.44      2.9      1.7
    ======  ======  =======  =======
    """

    LONGEST = 256  # samples, for the product
    LEAST = 16_384  # elements: 0.05 ms for 0.07 at 5 x 141 x 24, but for 0.03 at 5 x 141 x 2

    def __init__(self) -> None:
        super().__init__(POOLED)

    def forward(self, input: Tensor) -> Tensor:
        length = input.shape[-1]
        if runs_here(input) and input.numel() >= self.LEAST:
            return adaptive_avg_pool1d(input, POOLED)
        if not isinstance(length, int):  # a graph of torch.export, good for every length
            return input @ new_averaging_matrix(length, input.dtype, input.device)
        if length > self.LONGEST:
            return super().forward(input)
        # A compiler leaves out the cache, and warns of that.
        make = new_averaging_matrix if torch.compiler.is_compiling() else averaging_matrix
        return input @ make(length, input.dtype, input.device)


@functools.cache
def averaging_matrix(
    length: int, dtype: torch.dtype, device: torch.device, bins: int = POOLED
) -> Tensor:
    """``(length, bins)``: a series times this is ``nn.AdaptiveAvgPool1d(bins)`` of the series."""
    with outside_tracing():
        return new_averaging_matrix(length, dtype, device, bins)


def new_averaging_matrix(
    length: int, dtype: torch.dtype, device: torch.device, bins: int = POOLED
) -> Tensor:
    """The same, not kept."""
    bin = torch.arange(bins, device=device)
    first, end = bin * length // bins, -(-(bin + 1) * length // bins)
    samples = torch.arange(length, device=device).unsqueeze(1)
    inside = (samples >= first) & (samples < end)
    return (inside / (end - first).double()).to(dtype)
