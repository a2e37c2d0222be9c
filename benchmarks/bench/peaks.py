"""Measure the machine's peak speed: multiply-adds with operands in registers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from sparseconv.measure.timing import Times
from sparseconv.ops.backends import extension

DTYPES = ("float32", "float64")
PEAK = "fma peak"  # the loop's name among candidates
_RUN = 2e-3  # seconds of one run: short, so that some run undisturbed; starting threads takes 0.5 %


class Loop(NamedTuple):
    """A loop of multiply-adds from registers, to be interleaved with a kernel."""

    call: Callable[[], float]  # returns its seconds
    flops: float  # of all threads, per call

    def share(self, times: Times, flops: float) -> float:
        """Return the speed of ``"sparse"``, with ``flops`` per call, as a share of this loop's."""
        return float(np.median(flops / times["sparse"] / (self.flops / times.pop(PEAK))))


def loop(dtype: str) -> Loop:
    """Build a loop for torch's threads and the current instruction set.

    The clock rate of a shared machine varies, so the loop runs between calls to a kernel. The loop
    uses the kernels' multiply-add, which the portable baseline emulates.
    """
    assert extension is not None
    tried = 1_000
    passes = max(1, round(tried * _RUN / _seconds(dtype, tried, 20)))
    flops = 2.0 * extension.peak_pass * passes * torch.get_num_threads()
    return Loop(partial(_seconds, dtype, passes, 1), flops)


def _seconds(dtype: str, passes: int, repeats: int) -> float:
    assert extension is not None
    return float(min(extension.run_peak(dtype == "float64", passes, repeats)))
