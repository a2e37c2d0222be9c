"""Translate PyTorch's operations into steps of the C program, or into views of its tensors.

A value stores the position of each of its numbers in a tensor. Operations that only move numbers
(``view``, ``flatten``, ``chunk``, slices) change these positions and cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparseconv.core.geometry import Geometry, PaddingMode
from sparseconv.edge.builder import Builder, Call, Value, even, ordered, to_numpy
from sparseconv.edge.convolutions import convolution, convolve, transposed, upsampled, worth_storing
from sparseconv.edge.layers import Array, Layer, Pointwise

LARGEST = 4096  # samples that may have a factor each


def linear(build: Builder, x: Value, call: Call) -> Value:
    weight = to_numpy(call.args["weight"])
    active, bias = worth_storing(weight), call.bias(len(weight))
    return _along_last(build, x, weight, kind="linear", active=active, bias=bias)


def over_time(build: Builder, x: Value, call: Call) -> Any:
    """Add sums or maxima along a dimension; find the weights from unit samples."""
    dims, given = x.places.dim(), call.args.get("dim", -2 if call.args.get("other") is x else -1)
    alone = given[0] if isinstance(given, list) and len(given) == 1 else given
    dim = alone if alone in range(1 - dims, dims) and alone else -1  # else refused below
    x = Value(x.of, x.places.movedim(dim, -1))
    length = x.places.shape[-1]
    each = torch.eye(length + 1, length, dtype=torch.float64)[(None,) * (dims - 2)]
    y = call.again(each.movedim(-1, dim))
    several = isinstance(y, tuple)  # maxima, and where they are
    y = y[0] if several else y
    y = y.movedim(dim, -1) if y.dim() == dims else y
    if y.shape[: dims - 1] != each.shape[:-1]:
        raise NotImplementedError("must be along one dimension at a time, as in x.mean(-1).mean(1)")
    weight = to_numpy(y.reshape(length + 1, -1)[:-1]).T
    largest = "max" in call.name
    kind = call.name if len(weight) == 1 else f"{call.name} of {len(weight)} bins"
    value = _of_times(build, x, weight, kind, largest)
    kept = y.dim() == dims
    value = Value(value.of, value.places.movedim(-1, dim) if kept else value.places.squeeze(-1))
    return (value, None) if several else value


def _of_times(build: Builder, x: Value, weight: Array, kind: str, largest: bool) -> Value:
    """Add averages: before a 1x1 convolution, joined with earlier averages, or otherwise last."""
    before = build.writer(x) if x.places.dim() == 3 and build.is_in_order(x) else None
    # Sums of up to 2**12 weights 1 / n, each rounded in float64.
    averages = np.allclose(weight.sum(1), 1, 0, 2.0**-40)
    if before and averages and not (largest or before.relu or before.largest):
        source = Value(before.inputs[0], ordered((1, before.channels, before.length)))
        if before.over_time and before.weight.shape[1:] == source.places.shape[2:]:
            return _of_times(build, source, weight @ before.weight, kind, largest)
        if before.is_pointwise and len(weight) <= before.length == weight.shape[1]:
            means = _of_times(build, source, weight, kind, largest)
            build.shapes.append((len(weight), before.rows))
            made = replace(before, inputs=(means.of,), output=len(build.shapes) - 1,
                           positions=len(weight), length=len(weight))  # fmt: skip
            return Value(build.append(made), ordered((1, before.rows, len(weight))))
    return _along_last(build, x, weight, kind=kind, active=weight != 0, largest=largest,
                       bias=np.zeros(len(weight)))  # fmt: skip


def pool(build: Builder, x: Value, call: Call) -> Value:
    """Add ``max_pool1d`` or ``avg_pool1d``; store only one of a channel's equal windows."""
    args, largest = call.args, call.name == "max_pool1d"
    (taps,), (left,) = args["kernel_size"], args["padding"]
    dilation = tuple(args.get("dilation", (1,)))
    ragged = dilation != (1,) if largest else args["ceil_mode"] or not args["count_include_pad"]
    if x.places.dim() != 3 or (ragged and (left or args["ceil_mode"])):
        return over_time(build, x, call)  # type: ignore[no-any-return]
    channels, length = x.places.shape[1:]
    stride = (*args["stride"], taps)[0]
    positions = call.again(torch.zeros(1, 1, length)).shape[-1]
    right = (positions - 1) * stride + dilation[0] * (taps - 1) + 1 - length - left
    weight = np.full((channels, 1, taps), 1.0 if largest else 1 / taps)
    # The border, repeated, is in those windows already, so it does not change their maximum.
    mode: PaddingMode = "replicate" if largest else "zeros"
    around = (left, max(0, right))
    geometry = Geometry.of(weight.shape, stride, around, dilation, channels, mode)
    kind = "maximum" if largest else "mean"
    return convolve(build, x, call, weight, weight != 0, geometry, kind, largest=largest)


def _along_last(build: Builder, x: Value, weight: Array, active: Array, **options: Any) -> Value:
    *before, length = x.places.shape
    at: Array = x.places.reshape(-1, length).numpy()
    rows, positions = len(weight), len(at)
    over_time = len(before) == 2 and bool((at[:, 0] - at[0, 0] == np.arange(positions)).all())
    if (step := even(at.T, 1 if over_time else length)) is None:
        return _along_last(build, build.copy(x), weight, active, **options)
    order = at[0].argsort(kind="stable")
    made = build.add(
        Layer, x, rows, positions, weight=weight[:, order], active=active[:, order], step=step,
        offsets=at[0][order], over_time=over_time, rows_whole=over_time,
        stride=positions if over_time else rows, **options,
    )  # fmt: skip
    places = torch.arange(rows * positions)
    places = places.view(rows, positions).T if over_time else places
    return Value(made, places.reshape(*before, rows))


def scaled(build: Builder, x: Value, call: Call) -> Value:
    """Add BatchNorm, or arithmetic with constants, from its results for zeros and ones."""
    shift = call.again(torch.zeros(x.places.shape, dtype=torch.float64))
    if shift.shape != x.places.shape:
        raise NotImplementedError("broadcasts its input to a larger shape")
    scale = call.again(torch.ones(x.places.shape, dtype=torch.float64)) - shift
    x = build.filled(x)
    length, channels = build.shapes[x.of]
    parts = np.empty((2, length * channels))
    parts[:, x.places.numpy()] = to_numpy(torch.stack([scale, shift]))
    alike = parts.reshape(2, length, channels)
    if (alike == alike[:, :1]).all():
        parts = alike[:, 0]
    else:
        length, channels = 1, length * channels
    before = build.writers(x)
    sums = [
        step for step in before if isinstance(step, Layer) and step.rows == channels
        and not (step.relu or step.largest or step.over_time)
    ]  # fmt: skip
    if before and sums == before:
        for layer in sums:
            build.change(layer, weight=layer.weight * parts[0][:, None],
                         bias=layer.bias * parts[0] + parts[1])  # fmt: skip
        return x
    if channels > LARGEST:
        raise NotImplementedError(f"has {channels} factors; use one per channel")
    eye = np.eye(channels, dtype=bool)
    made = build.add(
        Layer, x, channels, length, kind="BatchNorm" if call.name == "batch_norm" else call.name,
        weight=eye * parts[0], active=eye, step=channels, offsets=np.arange(channels),
        bias=parts[1], length=length, channels=channels,
    )  # fmt: skip
    build.shapes[made] = build.shapes[x.of]
    return Value(made, x.places)


def norm(build: Builder, x: Value, call: Call) -> Value:
    if call.args["running_mean"] is None or call.args["training"]:
        raise ValueError(
            "expected a BatchNorm that uses running statistics, but this one uses those of each "
            "batch; it needs track_running_stats=True, and model.eval() before torch.export"
        )
    return scaled(build, x, call)


def arithmetic(build: Builder, x: Value, call: Call) -> Value:
    if len(call.values) == 1 and not (call.name == "div" and call.args["self"] is not x):
        return scaled(build, x, call)
    if call.name not in SIGNS or call.args.get("alpha", 1) != 1:
        raise NotImplementedError("of two results of the model has no counterpart in C")
    shape = torch.broadcast_shapes(*(value.places.shape for value in call.values))  # type: ignore[no-untyped-call]
    a, b = (Value(value.of, value.places.expand(shape)) for value in call.values)
    if not (torch.equal(a.places, b.places) and build.fills(a) and build.fills(b)):
        a, b = build.in_order(a), build.in_order(b)
    length, channels = build.shapes[a.of]
    sign, function = SIGNS[call.name]
    made = build.add(
        Pointwise, a, channels, length, kind=call.name, inputs=(a.of, b.of),
        expression=f"p {sign} q", function=function,
    )  # fmt: skip
    return Value(made, a.places)


def mapped(build: Builder, x: Value, call: Call) -> Value:
    """Add a function of each sample; its expression may use the call's arguments."""
    if call.args.get("approximate", "none") != "none":
        raise NotImplementedError(
            f"must have approximate='none', but has {call.args['approximate']!r}"
        )
    numbers = {}
    for name, value in call.args.items():
        if isinstance(value, Tensor) and value.numel() > 1:
            raise NotImplementedError(f"has several values of {name!r}; use a single one")
        if isinstance(value, int | float | Tensor):
            numbers[name] = float(np.float32(float(value)))
    if numbers.get("threshold") != numbers.get("value"):
        raise NotImplementedError("is discontinuous; its value must equal its threshold")
    x = build.filled(x)
    ends = torch.tensor([-3e38, -1.0, -1e-30, 0.0, 1e-30, 1.0, 3e38], dtype=torch.float64)
    if torch.equal(call.again(ends), ends.relu()) and (writers := build.writers(x)):
        for step in writers:
            build.change(step, relu=True)
        return x
    length, channels = build.shapes[x.of]
    bounds = [name for name in ("min", "max") if name in numbers]
    key = f"clamp_{bounds[0]}" if len(bounds) == 1 else call.name
    expression, steepest = FUNCTIONS[key]
    slopes = (abs(numbers.get(name, 0)) for name in ("negative_slope", "alpha", "weight"))
    made = build.add(
        Pointwise, x, channels, length, kind=call.name, steepest=max(steepest, *slopes),
        expression=expression.format(**{name: f"{n!r}f" for name, n in numbers.items()}),
        function=lambda y: to_numpy(call.again(torch.from_numpy(y))),
    )  # fmt: skip
    return Value(made, x.places)


def gated(build: Builder, x: Value, call: Call) -> Value:
    """Add ``glu``: one half times the sigmoid of the other."""
    build.shared.add(x.of)  # both halves are read
    half, gate = (Value(x.of, part) for part in x.places.chunk(2, call.args["dim"]))
    gate = mapped(build, gate, Call("sigmoid", [gate], {}, torch.sigmoid))
    return arithmetic(build, half, call._replace(name="mul", values=[half, gate]))


def power(build: Builder, x: Value, call: Call) -> Value:
    if call.args.get("exponent", 2) != 2:
        raise NotImplementedError("must have exponent 2; for x**3, write x * x * x")
    return arithmetic(build, x, call._replace(name="mul", values=[x, x]))


def ending(build: Builder, x: Value, call: Call) -> Value:
    """Record a ``softmax`` or ``log_softmax`` of all scores, which ends the program."""
    if x.places.shape[call.args["dim"]] != x.places.numel():
        raise NotImplementedError(
            f"has dim={call.args['dim']}; apply it over the dimension that contains all scores"
        )
    if x.places.numel() == 1:
        raise ValueError(
            "expected several scores, since the softmax of a single score is always 1; use "
            "nn.Sigmoid()"
        )
    build.ending = call.name
    return x


def padded(build: Builder, x: Value, call: Call) -> Value:
    (left, right, *others), value = call.args["pad"], call.args["value"]
    if any(others) or value:
        raise NotImplementedError(
            f"pads {'dimensions other than time' if any(others) else f'with {value}'}; pad only "
            "time, with zeros or with samples of the series"
        )
    mode = "zeros" if call.args["mode"] == "constant" else call.args["mode"]
    return build.padded(x, (left, right), mode)


def moved(build: Builder, x: Value, call: Call) -> Any:
    y = call.again(x.places.contiguous())  # a view of others has no such shape
    return Value(x.of, y) if isinstance(y, Tensor) else [Value(x.of, z) for z in y]


def stays(build: Builder, x: Value, call: Call) -> Value:
    """Return the input unchanged, as the operation does in eval mode."""
    return x


def joined(build: Builder, x: Value, call: Call) -> Value:
    """Add ``cat``: each part is written to its position or copied there."""
    values, shape = call.args["tensors"], list(x.places.shape)
    dim = call.args["dim"] % len(shape)
    if len(call.values) < len(values) or dim == 0 or len(shape) > 3:
        raise NotImplementedError("joins constants, batches or more than three dimensions")
    shape[dim] = sum(value.places.shape[dim] for value in values)
    build.shapes.append(((*shape, 1)[2], shape[1]))
    output, first = len(build.shapes) - 1, 0
    for value in values:
        alone = sum(value.of == other.of for other in values) == 1
        whole = build.filled(value) if alone else value
        writers = build.writers(whole) if alone and build.is_in_order(whole) else []
        channels = build.shapes[whole.of][1]
        if not all(channels in (step.stride, step.rows) for step in writers):
            writers = []  # a row is a sample, not a channel
        if not writers:
            build.copy(value, output=output, stride=shape[1], first=first)
        for step in writers:
            time, channel = divmod(step.first, channels)
            begin, stride = first + time * shape[1] + channel, step.stride // channels * shape[1]
            build.change(step, output=output, first=begin, stride=stride)
        first += value.places.shape[dim] * (1 if dim == 1 else shape[1])
    return Value(output, ordered(shape))


SIGNS: dict[str, tuple[str, Callable[..., Array]]] = {
    "add": ("+", np.add), "sub": ("-", np.subtract), "mul": ("*", np.multiply),
}  # fmt: skip
FUNCTIONS = {
    "relu": ("p < 0 ? 0 : p", 1.0),
    "relu6": ("p < 0 ? 0 : p > 6 ? 6 : p", 1.0),
    "clamp": ("p < {min} ? {min} : p > {max} ? {max} : p", 1.0),
    "clip": ("p < {min} ? {min} : p > {max} ? {max} : p", 1.0),
    "clamp_min": ("p < {min} ? {min} : p", 1.0),
    "clamp_max": ("p > {max} ? {max} : p", 1.0),
    "threshold": ("p <= {threshold} ? {value} : p", 1.0),
    "hardtanh": ("p < {min_val} ? {min_val} : p > {max_val} ? {max_val} : p", 1.0),
    "leaky_relu": ("p < 0 ? p * {negative_slope} : p", 1.0),
    "prelu": ("p < 0 ? p * {weight} : p", 1.0),
    "elu": ("p < 0 ? {alpha} * (expf(p) - 1) : p", 1.0),
    "gelu": ("p * (1 + erff(p * 0.70710678f)) / 2", 1.13),
    "abs": ("p < 0 ? -p : p", 1.0),
    "sigmoid": ("1 / (1 + expf(-p))", 0.25),
    "tanh": ("1 - 2 / (1 + expf(2 * p))", 1.0),
    "silu": ("p / (1 + expf(-p))", 1.1),
    "hardsigmoid": ("p < -3 ? 0 : p > 3 ? 1 : p / 6 + 0.5f", 0.17),
    "hardswish": ("p < -3 ? 0 : p > 3 ? p : p * (p + 3) / 6", 1.5),
}
STAY = (
    "dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "contiguous", "clone",
    "detach", "alias", "to", "_to_copy",
)  # fmt: skip
RULES: dict[str, Callable[[Builder, Value, Call], Any]] = {
    "fprop": convolution, "conv1d": convolution, "dgrad": transposed,
    "conv_transpose1d": transposed, "upsample_nearest1d": upsampled, "linear": linear,
    "batch_norm": norm, "max_pool1d": pool, "avg_pool1d": pool, "cat": joined, "pad": padded,
    "softmax": ending, "log_softmax": ending, "pow": power, "square": power, "glu": gated,
    **dict.fromkeys((
        "mean", "sum", "max", "amax", "matmul", "adaptive_avg_pool1d", "adaptive_max_pool1d",
    ), over_time),
    **dict.fromkeys((*SIGNS, "div", "rsub", "neg"), arithmetic),
    **dict.fromkeys(FUNCTIONS, mapped),
    **dict.fromkeys(STAY, stays),
    **dict.fromkeys((
        "view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "transpose", "permute",
        "slice", "select", "narrow", "chunk", "split", "split_with_sizes", "unbind", "index_select",
        "expand", "flip", "repeat",
    ), moved),
}  # fmt: skip
