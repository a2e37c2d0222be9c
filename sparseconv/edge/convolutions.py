"""Translate convolutions, also transposed ones, into layers of the C program."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from sparseconv.core.geometry import Geometry
from sparseconv.core.pattern import KernelCSR
from sparseconv.edge.builder import Builder, Call, Value, even, ordered, to_numpy
from sparseconv.edge.layers import Array, Layer


def worth_storing(weight: Array) -> Array:
    """Choose the stored weights of a dense layer: all, or the nonzero ones if fewer than half."""
    active: Array = weight != 0
    return active if 2 * active.sum() < active.size else np.ones_like(active)


def convolution(build: Builder, x: Value, call: Call) -> Value:
    return convolve(build, x, call, *_weights(call))


def transposed(build: Builder, x: Value, call: Call) -> Value:
    weight, active, geometry, kind = _weights(call)
    return _transpose(build, x, call, weight, active, geometry, f"transposed {kind}")


def _weights(call: Call) -> tuple[Array, Array, Geometry, str]:
    """Return the weights, which of them are active, the geometry and the kind of a layer."""
    if "geometry" in call.args:  # an operation of sparseconv
        geometry = Geometry.from_numbers(call.args["geometry"])
        pattern = KernelCSR(call.args["crow_indices"], call.args["col_indices"], geometry.shape)
        active: Array = pattern.to_mask().numpy()
        weight: Array = np.zeros(active.shape)
        weight[active] = to_numpy(call.args["values"])
        return weight, active, geometry, "sparse convolution"
    weight = to_numpy(call.args["weight"])
    how: Any = {name: call.args[name] for name in ("stride", "padding", "dilation", "groups")}
    geometry = Geometry.of(weight.shape, **how, padding_mode="zeros")
    return weight, worth_storing(weight), geometry, "convolution"


def convolve(
    build: Builder, x: Value, call: Call, weight: Array, active: Array, geometry: Geometry,
    kind: str, **options: Any,
) -> Value:  # fmt: skip
    positions = geometry.output_length(x.places.shape[-1])
    if any(geometry.padding):
        x = build.padded(x, geometry.padding, geometry.padding_mode)
    at: Array = x.places[0].numpy()
    if (spacing := even(at, build.shapes[x.of][1])) is None:
        x = build.copy(x)
        at, spacing = x.places[0].numpy(), build.shapes[x.of][1]
    # The layer pads what it reads itself.
    source, pads = build.pads.get(x.of, (x, {}))
    (rows, group_channels, taps), each = weight.shape, np.arange(geometry.groups)
    offsets = (np.arange(taps)[:, None] * geometry.dilation * spacing + at[:, 0]).ravel()
    order = offsets.argsort(kind="stable")

    def window(part: Array) -> Array:
        """Arrange ``(rows, group_channels, taps)`` in the order of a window in memory."""
        by_group = part.reshape(len(each), -1, group_channels, taps).swapaxes(2, 3)
        wide = np.zeros((*by_group.shape[:3], len(each), group_channels), part.dtype)
        wide[each, :, :, each] = by_group
        return wide.reshape(rows, -1)[:, order]

    made = build.add(
        Layer, source, rows, positions, kind=f"{kind}, {taps} tap{'s' if taps > 1 else ''}",
        weight=window(weight), active=window(active), offsets=offsets[order],
        bias=call.bias(rows), step=geometry.stride * spacing,
        relu=bool(call.args.get("relu")), **(options | pads),
    )  # fmt: skip
    return Value(made, ordered((1, rows, positions)))


def upsampled(build: Builder, x: Value, call: Call) -> Value:
    """Add nearest-neighbour upsampling: a transposed convolution of each channel with ones."""
    channels, length = x.places.shape[1:]
    times = torch.arange(length, dtype=torch.float64).expand(1, 1, length)
    found = call.again(times)
    factor = found.shape[-1] // length
    if not torch.equal(found, times.repeat_interleave(factor, -1)):
        raise NotImplementedError("must lengthen the series by a whole factor")
    ones = np.ones((channels, 1, factor), bool)
    geometry = Geometry.of(ones.shape, factor, 0, 1, channels, "zeros")
    return _transpose(build, x, call, ones * 1.0, ones, geometry, "upsampling")


def _transpose(
    build: Builder, x: Value, call: Call, weight: Array, active: Array, geometry: Geometry,
    kind: str,
) -> Value:  # fmt: skip
    """Add a transposed convolution: a convolution for each phase of its stride.

    Tap k of output ``phase + m * stride`` multiplies sample ``m + (phase + padding - k * dilation)
    / stride``, if that is a whole number.
    """
    _, channels, taps, stride, padding, _, dilation, groups, *_ = geometry
    rows, samples = groups * channels, x.places.shape[-1]
    length = call.again(torch.zeros(x.places.shape, dtype=torch.float64)).shape[-1]
    weight, active = (
        part.reshape(groups, -1, channels, taps).swapaxes(1, 2).reshape(rows, -1, taps)[..., ::-1]
        for part in (weight, active)
    )
    x = build.in_order(x)
    build.shared.add(x.of)  # each phase reads it
    build.shapes.append((length, rows))
    output = len(build.shapes) - 1
    for phase in range(min(stride, length)):
        positions = -(-(length - phase) // stride)
        at, rest = np.divmod(phase + padding - np.arange(taps)[::-1] * dilation, stride)
        meets = (rest == 0) & (-positions < at) & (at < samples)
        kept = meets.nonzero()[0] if meets.any() else np.zeros(1, int)  # which has weights of 0
        first, last = (at * meets)[kept[[0, -1]]]
        how = geometry._replace(
            out_channels=weight.shape[0], group_channels=weight.shape[1], kernel_size=len(kept),
            stride=1, left=-first, right=last + positions - samples,
            dilation=dilation // math.gcd(dilation, stride),
        )  # fmt: skip
        convolve(
            build, x, call, (weight * meets)[..., kept], (active & meets)[..., kept], how,
            f"{kind}, phase {phase + 1} of {stride}",
            output=output, first=phase * rows, stride=stride * rows,
        )  # fmt: skip
    return Value(output, ordered((1, rows, length)))
