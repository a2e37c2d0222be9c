"""Measure peaks: the machine's speed (multiply-adds from registers), and the memory of a call."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

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


def peak_bytes(call: Callable[[], object]) -> int:
    """Return the peak memory, in bytes, that torch allocates during a call.

    The kernels' scratch memory (per thread, within L2) is not counted.
    """
    return max(accumulate(allocations(call), initial=0))


def allocations(call: Callable[[], object]) -> list[int]:
    """Return the size in bytes of each CPU buffer that torch allocates or (negative) frees."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # or it writes two lines to stderr each time
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        kept = call()  # freed after the last event, as a caller would hold it
    del kept
    assert profiler.profiler is not None
    results = profiler.profiler.kineto_results
    assert results is not None
    changes, events = [], list(results.experimental_event_tree())
    while events:
        event = events.pop()
        events += event.children
        if event.tag == torch._C._profiler._EventType.Allocation:
            changes.append((event.start_time_ns, event.extra_fields.alloc_size))
    return [change for _, change in sorted(changes, key=lambda pair: pair[0])]
