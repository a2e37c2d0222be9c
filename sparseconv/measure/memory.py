"""Memory: the most that a call holds, and keeping what it frees."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile


def peak_bytes(call: Callable[[], object]) -> int:
    """The most bytes that torch's allocator has out at once during a call: result, temporaries.

    The kernels' scratch is not among them: it belongs to a thread, not to a call, and fits in L2.

    Example:
        >>> peak_bytes(lambda: torch.zeros(1000))
        4000
    """
    out = most = 0
    for change in allocations(call):
        out += change
        most = max(most, out)
    return most


def allocations(call: Callable[[], object]) -> list[int]:
    """What torch's CPU allocator hands out and takes back during a call, in order.

    Returns:
        Bytes of each buffer; those of one that is given back are negative.

    Example:
        >>> allocations(lambda: torch.zeros(1000).dim())
        [4000, -4000]
    """
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


def retain_freed_memory() -> None:
    """Let the C library keep what a training step frees, instead of returning it to the system.

    A step frees and allocates the same activations; given back, each of their pages is faulted in
    and cleared again (some 2 000 faults and a fifth of the time of a DSN's step at L = 128). The
    GNU C library keeps blocks up to the largest that it has seen freed, 32 MB at most: so one such
    block is allocated and freed. Elsewhere this does nothing.
    """
    torch.empty(2**25 - 2**16, dtype=torch.uint8)
