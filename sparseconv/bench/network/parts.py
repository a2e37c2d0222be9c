"""Where the time of a network goes: profiled operations, grouped by what they are for."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from torch.profiler import ProfilerActivity, profile

from sparseconv.measure import timing

OTHER = "python and other"
NORM = "batch norm, relu"  # one part, for one side computes them in one pass

# The outermost operation that is named here takes all the time below it. A convolution's part
# depends on its number of taps as well.
_PARTS = {
    "sparseconv::fprop": "sparse conv fprop",
    "sparseconv::dgrad": "sparse conv dgrad",
    "sparseconv::wgrad": "sparse conv wgrad",
    "sparseconv::triton_fprop": "sparse conv fprop",
    "sparseconv::triton_dgrad": "sparse conv dgrad",
    "sparseconv::triton_wgrad": "sparse conv wgrad",
    "sparseconv::fprop_pointwise": "sparse conv and 1x1",
    "sparseconv::plan_fprop": "plans",
    "sparseconv::plan_dgrad": "plans",
    "sparseconv::pointwise_fprop": "1x1 conv",
    "sparseconv::pointwise_dgrad": "1x1 conv",
    "sparseconv::pointwise_wgrad": "1x1 conv",
    "sparseconv::batch_norm_relu": NORM,
    "sparseconv::batch_norm_relu_backward": NORM,
    "sparseconv::adaptive_avg_pool1d": "pool and head",
    "sparseconv::adaptive_avg_pool1d_backward": "pool and head",
    "aten::batch_norm": NORM,
    "aten::native_batch_norm_backward": NORM,
    "aten::relu": NORM,
    "aten::relu_": NORM,
    "aten::threshold_backward": NORM,
    "aten::pad": "padding",
    "aten::replication_pad1d": "padding",
    "aten::replication_pad1d_backward": "padding",
    "aten::constant_pad_nd": "padding",
    "aten::matmul": "pool and head",
    "aten::mm": "pool and head",
    "aten::bmm": "pool and head",
    "aten::linear": "pool and head",
    "aten::adaptive_avg_pool1d": "pool and head",
    "aten::_adaptive_avg_pool2d_backward": "pool and head",
    "aten::mean": "pool and head",
    "aten::log_softmax": "pool and head",
    "aten::_log_softmax_backward_data": "pool and head",
    "aten::nll_loss_nd": "pool and head",
    "aten::nll_loss_backward": "pool and head",
}
# For whoever shows them side by side.
ORDER = (
    "sparse conv fprop", "sparse conv dgrad", "sparse conv wgrad", "dense conv forward",
    "dense conv backward", "sparse conv and 1x1", "1x1 conv", NORM, "padding", "pool and head",
    "optimizer and masks", "plans", OTHER,
)  # fmt: skip
_WEIGHT_AT = {"aten::conv1d": (1, "forward"), "aten::convolution_backward": (2, "backward")}


def measure(call: Callable[[], object], *, repeats: int = 5) -> dict[str, float]:
    """Milliseconds per call and part, the largest first.

    They add up to the time of a call that is not profiled. The profiler slows Python down, so what
    remains of that time after all operations, and not of the profiled one, is
    ``"python and other"``; if the profiled operations take longer, nothing remains.

    Args:
        call: what to profile.
        repeats: profiled calls.
    """
    milliseconds = (
        timing.median_with_ci(timing.interleave({"": call}, rounds=repeats)[""]).median * 1e3
    )
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
    """The part that an operation belongs to; None where its children have to say.

    Example:
        >>> part_of("aten::conv1d", [[16, 47, 128], [141, 47, 39]])
        'dense conv forward'
        >>> part_of("aten::conv1d", [[16, 141, 128], [47, 141, 1]])
        '1x1 conv'
    """
    if name.startswith("Optimizer."):
        return "optimizer and masks"
    if name in _WEIGHT_AT:
        at, direction = _WEIGHT_AT[name]
        return "1x1 conv" if input_shapes[at][-1] == 1 else f"dense conv {direction}"
    return _PARTS.get(name)
