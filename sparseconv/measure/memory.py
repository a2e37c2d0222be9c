"""Measure the peak memory of a call, and keep freed memory."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from itertools import accumulate

import torch
from torch.profiler import ProfilerActivity, profile

# Of malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def peak_bytes(call: Callable[[], object]) -> int:
    """Return the most bytes that torch's allocator has handed out during a call.

    The kernels' scratch memory is not counted: it belongs to a thread and fits in L2.
    """
    return max(accumulate(allocations(call), initial=0))


def allocations(call: Callable[[], object]) -> list[int]:
    """Return the bytes of each buffer that torch hands out on the CPU (or takes back: negative)."""
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


def retain_freed_memory() -> bool:
    """Let this process keep the memory that CPU tensors free, instead of returning it.

    A pass of a network frees its activations, and the next one allocates the same again. The GNU C
    library (glibc) returns such blocks to the system, which clears every page of new blocks at its
    first use. That is often a fifth to a half of the time of a small network. This function sets
    glibc's ``M_MMAP_THRESHOLD`` to 1 GiB (older versions allow 32 MiB) and ``M_TRIM_THRESHOLD`` to
    2 GiB. The process then keeps the memory of its peak until it exits. Call it at the start of a
    program that trains or infers on the CPU, and before you measure. ``training.train`` and
    ``DSNClassifier`` call it, and so do the commands ``train``, ``prune``, ``profile`` and
    ``bench``.

    Returns:
        Whether it was set. It is False with other C libraries (musl, macOS, Windows), where this
        function does nothing. Never raises.

    Example:
        >>> import sparseconv as sc
        >>> kept = sc.retain_freed_memory()

    Source: mallopt(3), the manual page of glibc's parameters.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no such function; Windows has no CDLL(None)
        return False
    mapped = mallopt(_M_MMAP_THRESHOLD, 2**30) or mallopt(_M_MMAP_THRESHOLD, 2**25)
    return bool(mapped and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
