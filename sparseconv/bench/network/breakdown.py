"""Where the time of a network goes: profiled operations, grouped by what they are for."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from torch.profiler import ProfilerActivity, profile

from sparseconv.measure import timing

OTHER = "python and other"
NORM = "batch norm, relu"  # one part, for one side computes them in one pass
OPTIMIZER = "optimizer and masks"

# The outermost operation that is named here has all the time below it; the first match counts.
_PARTS = (
    (r"Optimizer\.", OPTIMIZER),
    (r"sparseconv::(?:triton_)?(fprop|dgrad|wgrad)$", r"sparse conv \1"),
    (r"sparseconv::fprop_", "sparse conv and 1x1"),
    (r"sparseconv::plan_", "plans"),
    (r"sparseconv::pointwise_", "1x1 conv"),
    (r"(?:aten|sparseconv)::.*(?:batch_norm|relu|threshold)", NORM),
    (r"aten::(?:\w*_)?pad", "padding"),
    (r"(?:aten|sparseconv)::.*(?:pool|softmax|nll_loss)", "pool and head"),
    (r"aten::(?:matmul|mm|bmm|linear|mean)$", "pool and head"),
)
# A dense convolution's part depends on its number of taps.
_WEIGHT_AT = {"aten::conv1d": (1, "forward"), "aten::convolution_backward": (2, "backward")}


def measure(call: Callable[[], object], *, repeats: int = 5) -> dict[str, float]:
    """Milliseconds per call and part, the largest first.

    They add up to the time of a call that is not profiled. The profiler slows Python down, so what
    remains of that time after all operations, and not of the profiled one, is
    ``"python and other"``; if the profiled operations take longer, nothing remains.
    """
    milliseconds = 1e3 * float(np.median(timing.interleave({"": call}, rounds=repeats)[""]))
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # or it writes to stderr
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        for _ in range(repeats):
            call()
    spent: dict[str, float] = {}
    waiting = [event for event in profiler.events() or [] if event.cpu_parent is None]
    while waiting:
        event = waiting.pop()
        part = part_of(event.name, event.input_shapes)
        if part is None:
            waiting += event.cpu_children
        else:
            spent[part] = spent.get(part, 0) + event.cpu_time_total / 1e3 / repeats
    spent[OTHER] = max(0.0, milliseconds - sum(spent.values()))
    return dict(sorted(spent.items(), key=lambda item: -item[1]))


def part_of(name: str, input_shapes: Any = ()) -> str | None:
    """The part that an operation belongs to; None where its children have to say."""
    if name in _WEIGHT_AT:
        at, direction = _WEIGHT_AT[name]
        return "1x1 conv" if input_shapes[at][-1] == 1 else f"dense conv {direction}"
    for pattern, part in _PARTS:
        if found := re.match(pattern, name):
            return found.expand(part)
    return None
