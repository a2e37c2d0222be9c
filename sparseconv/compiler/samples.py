"""Rules for operations on neighbouring samples: pooling, averages, cropping, upsampling."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from sparseconv.compiler.costs import cost
from sparseconv.compiler.steps import (
    NOT_A_SIGNAL,
    Lanes,
    Step,
    in_rows,
    is_signal,
    named,
    one,
    require,
    switches_gradients,
    value_of,
)
from sparseconv.ops.backends import extension
from sparseconv.ops.lanes import OPS

MOST_POOLED = 15  # samples; the time is proportional to them (kPoolRadius in csrc/cpu/fused.h)


def pooling(node: Any) -> tuple[Node, int, int, int]:
    """Return the input of a max pooling, its size, stride and padding."""
    given = named(node, "input kernel_size stride padding dilation ceil_mode return_indices")
    size, dilation = one(given["kernel_size"]), one(given.get("dilation", 1))
    require(is_signal(given["input"]), NOT_A_SIGNAL)
    require(not given.get("return_indices"), "it also returns indices")
    require(dilation == 1 and not given.get("ceil_mode"), "it is dilated, or rounds lengths up")
    return given["input"], size, one(given.get("stride")) or size, one(given.get("padding", 0))


def max_pool(node: Any) -> Step:
    x, size, stride, padding = pooling(node)
    stays = (stride, 2 * padding) == (1, size - 1)
    if stays:
        require(size <= MOST_POOLED, f"its window is longer than {MOST_POOLED} samples")
    else:
        apart = stride > 1 and stride >= size and padding == 0
        require(apart, "its windows are padded or overlap")
        _require_whole_windows(x, value_of(node).shape[2], size, stride)

    def build(lanes: Lanes) -> Node:
        return lanes.call(OPS.lanes_max_pool.default, lanes.of(x), size, stride, *lanes.sizes(x))

    pooled = None if stays else value_of(node).shape[2]
    return Step((x,), build, cost("max_pool", in_rows(x)), length=pooled)


def _mean_step(x: Any, keepdim: bool) -> Step:
    require(is_signal(x), NOT_A_SIGNAL)

    def build(lanes: Lanes) -> Node:
        channels = int(value_of(x).shape[1])
        mean = lanes.call(OPS.lanes_mean.default, lanes.of(x), channels, *lanes.sizes(x))
        return lanes.call(torch.unsqueeze, mean, -1) if keepdim else mean

    return Step((x,), build, cost("mean", in_rows(x)), in_lanes=False)


def average(node: Any) -> Step:
    given = named(node, "input output_size")
    require(one(given["output_size"]) == 1, "it averages parts of a series")
    return _mean_step(given["input"], keepdim=True)


def mean(node: Any) -> Step:
    given = named(node, "input dim keepdim")
    require(one(given.get("dim")) in (2, -1), "it does not average over samples alone")
    require(given.get("dtype") is None, "it changes the dtype")
    return _mean_step(given["input"], keepdim=bool(given.get("keepdim", False)))


def crop(x: Any, start: Any, length: Any) -> Step:
    size = value_of(x).shape[2]
    require(isinstance(size, int), "its length is dynamic")
    # Samples before the first one stay unread, which may not change what is seen of them.
    seen = (start == 0 or not x.meta["hidden"]) and not switches_gradients(x.graph)
    if start + length == size and seen:
        return Step((x,), lambda lanes: lanes.of(x), (0.0, 0.0), exact=False)
    return _resampled(x, "crop", length, start=start)


def pad(node: Any) -> Step:
    given = named(node, "input pad mode value")
    x, ends = given["input"], given["pad"]
    require(is_signal(x) and isinstance(value_of(x).shape[2], int), NOT_A_SIGNAL)
    require(len(ends) == 2 and all(isinstance(n, int) for n in ends), "it pads other dimensions")
    zeros = given.get("mode", "constant") == "constant" and given.get("value") in (None, 0)
    require(zeros, "it does not pad with zeros")
    require(min(ends) > -value_of(x).shape[2], "it crops all samples")
    return _resampled(x, "crop", int(value_of(x).shape[2]) + sum(ends), start=-ends[0])


def _resampled(
    x: Any, what: str, samples: int, start: int = 0, repeat: int = 1, stride: int = 1
) -> Step:
    """Copy samples (see ``ops.lanes``); a sum of several is made an average."""

    def build(lanes: Lanes) -> Node:
        sizes = *lanes.sizes(x), samples
        y = lanes.call(OPS.lanes_resample.default, lanes.of(x), start, repeat, stride, *sizes)
        return lanes.call(torch.div, y, stride) if stride > 1 else y

    return Step((x,), build, cost(what, in_rows(x)), length=samples)


def _require_whole_windows(x: Any, samples: int, size: int, stride: int) -> None:
    """Require that each window of the longer one of input and output is in one lane."""
    batch, _, length = value_of(x).shape
    require(all(isinstance(n, int) for n in (batch, length)), "its sizes are dynamic")
    require(samples > 1, "one sample is not a series")
    assert extension is not None
    longer = batch, max(length, samples), value_of(x).dtype.itemsize, size, stride
    require(in_rows(x) or extension.pools_in_lanes(*longer), "its windows are cut by lanes")


def upsample(node: Any) -> Step:
    names = "input size scale_factor mode align_corners recompute_scale_factor antialias"
    given = named(node, names)
    x, factor = given["input"], one(given.get("scale_factor"))
    require(is_signal(x), NOT_A_SIGNAL)
    require(given.get("mode", "nearest") == "nearest", "it interpolates")
    whole = one(given.get("size")) is None and isinstance(factor, int | float)
    require(whole and int(factor) == factor, "its factor is a fraction, or not known")
    repeat = int(factor)
    samples = value_of(x).shape[2] * repeat
    _require_whole_windows(x, samples, repeat, repeat)
    return _resampled(x, "upsample", samples, repeat=repeat)


def average_pool(node: Any) -> Step:
    given = named(node, "input kernel_size stride padding ceil_mode count_include_pad")
    x, size = given["input"], one(given["kernel_size"])
    require(is_signal(x), NOT_A_SIGNAL)
    apart = (one(given.get("stride")) or size, one(given.get("padding", 0))) == (size, 0)
    require(apart and not given.get("ceil_mode"), "its windows are padded, overlap or are cut")
    samples = value_of(x).shape[2] // size
    _require_whole_windows(x, samples, size, size)
    return _resampled(x, "average_pool", samples, stride=size)
