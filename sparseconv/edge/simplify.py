"""The same network in fewer steps: what a layer before can do as well is done there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from sparseconv.edge.builder import Builder, Value
from sparseconv.edge.layers import AnyStep, Array, Layer

Shapes = list[tuple[int, int]]


def simplified(steps: Sequence[AnyStep], shapes: Shapes, scores: int) -> list[AnyStep]:
    """Fold BatchNorm, ReLU, copies and averages, and leave out what no score depends on."""
    steps = _with_padding(steps)
    needed, left = {scores}, []
    for step in reversed(steps):
        if step.output in needed:
            needed.update(step.inputs)
            left.append(step)
    steps = left[::-1]
    while _fold_one(steps, shapes, scores) or _average_one_first(steps, shapes, scores):
        pass
    return steps


def _with_padding(steps: Sequence[AnyStep]) -> list[AnyStep]:
    """Let layers pad what they read themselves, instead of reading a padded copy."""
    made: list[AnyStep] = []
    copies: dict[int, Layer] = {}
    for step in steps:
        copy = copies.get(step.inputs[0])
        if copy is not None and isinstance(step, Layer) and not any(step.padding):
            step = replace(step, inputs=copy.inputs, length=copy.length, padding=copy.padding,
                           padding_mode=copy.padding_mode)  # fmt: skip
        made.append(step)
        if isinstance(step, Layer) and step.kind == "padding" and not step.first:
            copies[step.output] = step
    return made


def _alone(steps: Sequence[AnyStep], number: int) -> bool:
    """Tell whether one step alone reads a tensor, once."""
    return sum(step.inputs.count(number) for step in steps) == 1


def _fold_one(steps: list[AnyStep], shapes: Shapes, scores: int) -> bool:
    for step in steps:
        source = step.inputs[0]
        if source in (0, scores) or not _alone(steps, source):
            continue
        writers = [other for other in steps if other.output == source]
        if isinstance(step, Layer) and step.is_copy and step.positions == shapes[source][0]:
            found = [_written_to(step, other, shapes[source][1]) for other in writers]
        elif len(writers) == 1 and (one := _folded(writers[0], step)) is not None:
            found = [one]
        else:
            continue
        for old, new in zip(writers, found, strict=True):
            steps[steps.index(old)] = new
        steps.remove(step)
        return True
    return False


def _written_to(copy: AnyStep, step: AnyStep, channels: int) -> AnyStep:
    """Let a step write where its results are copied to."""
    time, channel = divmod(step.first, channels)
    first = copy.first + time * copy.stride + channel
    return replace(step, output=copy.output, first=first, stride=copy.stride)


def _folded(step: AnyStep, after: AnyStep) -> AnyStep | None:
    """Let a step compute what the one after it makes of its results; None where it cannot."""
    place: dict[str, Any] = {"output": after.output, "first": after.first, "stride": after.stride}
    if after.kind == "relu":
        return replace(step, **place, relu=True)
    if not isinstance(step, Layer) or not isinstance(after, Layer) or step.over_time:
        return None
    scales = not step.relu and not step.largest  # what comes after need not be a copy
    if not after.is_diagonal or after.rows != step.rows or not (scales or after.is_copy):
        return None
    scale = after.weight.diagonal()
    made = replace(
        step, **place, weight=step.weight * scale[:, None], bias=step.bias * scale + after.bias,
        relu=step.relu or after.relu, positions=after.positions,
    )  # fmt: skip
    if made.positions < step.positions:  # and less of the padding is read
        last = (made.positions - 1) * step.step + int(step.offsets[-1])
        right = last // step.channels + 1 - step.length - step.padding[0]
        made = replace(made, padding=(step.padding[0], max(0, right)))
    return made


def _average_one_first(steps: list[AnyStep], shapes: Shapes, scores: int) -> bool:
    """Move averages before 1x1 convolutions, which then have fewer positions, and merge them."""
    for after in steps:
        source = after.inputs[0]
        if not isinstance(after, Layer) or not _averages(after) or source == scores:
            continue
        writers = [other for other in steps if other.output == source]
        if len(writers) != 1 or not _alone(steps, source):
            continue
        before, bins = writers[0], len(after.weight)
        if not isinstance(before, Layer) or before.relu:
            continue
        if _averages(before):
            weight = after.weight @ before.weight
            kind = "mean over time" if bins == 1 else f"means of {bins} bins"
            steps[steps.index(after)] = replace(
                after, inputs=before.inputs, kind=kind, weight=weight, active=weight != 0,
                offsets=before.offsets, length=before.length,
            )  # fmt: skip
            steps.remove(before)
            return True
        if before.is_pointwise and bins <= after.length:
            channels = before.channels
            shapes.append((bins, channels))
            first = replace(
                after, inputs=before.inputs, output=len(shapes) - 1, first=0, stride=channels,
                offsets=np.arange(after.length) * channels, channels=channels, positions=channels,
                relu=False,
            )  # fmt: skip
            second = replace(
                before, inputs=(first.output,), output=after.output, first=after.first,
                stride=after.stride, positions=bins, length=bins, relu=after.relu,
            )  # fmt: skip
            steps[steps.index(before)], steps[steps.index(after)] = first, second
            return True
    return False


def _averages(layer: Layer) -> bool:
    """Tell whether a layer makes averages over all times of each channel."""
    whole = len(layer.offsets) == layer.length and layer.positions == layer.channels
    ones = np.abs(layer.weight.sum(1) - 1) < 2.0**-40
    plain = layer.over_time and not layer.largest and not layer.bias.any()
    return plain and whole and bool(ones.all())


def scores_in_order(build: Builder, scores: Value) -> list[AnyStep]:
    """Let the last layer give its results in the order of PyTorch's scores."""
    steps, want = build.steps, scores.places[0].numpy()
    writers = [step for step in steps if step.output == scores.of]
    read = any(scores.of in step.inputs for step in steps)
    last = _ordered(writers[0], want) if len(writers) == 1 and not read else None
    if last is None:
        build.copy(scores)  # adds a layer
        return steps
    return [*(step for step in steps if step is not writers[0]), last]


def _ordered(last: AnyStep, want: Array) -> Layer | None:
    """Return the layer with its results in this order; None where it cannot have that."""
    if not isinstance(last, Layer) or len(want) != last.places.size:
        return None
    if (want == np.arange(len(want))).all():
        return last
    if last.positions == 1:
        return replace(last, weight=last.weight[want], active=last.active[want],
                       bias=last.bias[want])  # fmt: skip
    whole = not last.rows_whole
    other = replace(last, rows_whole=whole, stride=last.positions if whole else last.rows)
    # Position and row of each place now, and where they would lie then.
    moved = np.empty(len(want), int)
    moved[last.places.ravel()] = other.places.ravel()
    return other if (moved[want] == np.arange(len(want))).all() else None
