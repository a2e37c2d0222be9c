"""The table of rules: how an operation of a graph is computed on tensors in lanes, or in rows.

Tensors of float32 and float64 are in lanes, those of bfloat16 in rows (``ops.lanes``). A rule gets
a node of a graph of torch's functions, and returns a ``Step``, or raises ``Outside`` with the
reason why the node has none. In lanes, outputs must hold zeros where the order is idle: the ops in
``ops.lanes`` see to it, and other functions map zeros to zeros or are masked.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node

from sparseconv.compiler.costs import cost
from sparseconv.core.geometry import Geometry
from sparseconv.core.tracing import outside_tracing
from sparseconv.ops.backends import extension
from sparseconv.ops.lanes import OPS, PANEL, draw_seed

NOT_A_SIGNAL = "it is not on a batch of float32, float64 or bfloat16 series on a CPU"
MOST_POOLED = 15  # samples; the time is proportional to them (kPoolRadius in csrc/cpu/fused.h)


class Outside(Exception):  # noqa: N818
    """The reason why an operation has no rule that fits."""


class Lanes(Protocol):
    """What a rule builds with: see ``lowering.Lowering``."""

    def call(self, target: Any, *args: Any, **kwargs: Any) -> Node: ...
    def of(self, signal: Node) -> Node: ...
    def sizes(self, signal: Node) -> tuple[Any, Any]: ...
    def samples(self, signal: Node) -> Node: ...


class Step(NamedTuple):
    """What one node becomes.

    Attributes:
        signals: the arguments that are read in lanes.
        build: adds the nodes that compute the result.
        gain: nanoseconds saved for each element of the output, without and with gradients.
        in_lanes: whether the result is in lanes; else it is what the node gave.
        length: of the result, where it changes.
        margin: padding that is read before or after a series.
        exact: whether signals must hold nothing before their samples; see ``lowering.Lowering``.
    """

    signals: tuple[Node, ...]
    build: Callable[[Lanes], Node]
    gain: tuple[float, float]
    in_lanes: bool = True
    length: int | None = None
    margin: int = 0
    exact: bool = True


def require(condition: Any, why: str) -> None:
    if not condition:
        raise Outside(why)


def value_of(node: Any) -> Any:
    """Return the fake tensor, or whatever else Dynamo recorded for a node."""
    return node.meta.get("example_value") if isinstance(node, Node) else None


def is_signal(node: Any) -> bool:
    """Return whether a node is a batch of series that fits lanes; one sample is not a series."""
    value = value_of(node)
    rows = extension is not None and extension.has_block_kernels()
    return (
        isinstance(value, Tensor)
        and value.dim() == 3
        and value.shape[2] != 1
        and 0 not in value.shape
        and value.dtype in (torch.float32, torch.float64, *(torch.bfloat16,) * rows)
        and value.device.type == "cpu"
        and value.layout is torch.strided
    )


def one(value: Any) -> Any:
    return value[0] if isinstance(value, tuple | list) and len(value) == 1 else value


def named(node: Node, names: str) -> dict[str, Any]:
    """Return a call's arguments by their names, as far as they were passed."""
    return dict(zip(names.split(), node.args, strict=False)) | dict(node.kwargs)


def in_rows(node: Any) -> bool:
    return bool(value_of(node).dtype == torch.bfloat16)


def _require_same_dtype(node: Node, *signals: Any, weights: tuple[Any, ...] = ()) -> None:
    dtype = value_of(node).dtype
    # In rows they may be float32: autocast casts weights, and BatchNorm has its own in float32.
    of_weights = (dtype, torch.float32) if in_rows(node) else (dtype,)
    same = all(value_of(x).dtype == dtype for x in signals) and all(
        value_of(x).dtype in of_weights for x in weights if x is not None
    )
    require(same, "its tensors have several dtypes")


def _real(node: Any) -> Tensor | None:
    """Return the tensor that a node stands for, if it is known."""
    if node.op == "get_attr":
        return cast(Tensor, operator.attrgetter(node.target)(node.graph.owning_module))
    return cast("Tensor | None", node.meta.get("real"))


def _require_blocks(crow: Tensor | None, col: Tensor | None, geometry: Geometry) -> None:
    """Refuse a pattern that the kernels for blocks cannot compute, if it is known."""
    if crow is None or col is None:
        return
    assert extension is not None
    with outside_tracing():
        fits = extension.fits_rows(crow, col, geometry)
    require(fits, "its weights are no blocks of 16 x 16 channels, so they are not in rows")


def _before_cast(node: Any) -> Any:
    """Return what autocast casts to bfloat16, which the kernels do themselves."""
    cast_from = node.args[0] if isinstance(node, Node) and node.target == "to" else None
    exact = cast_from is not None and value_of(cast_from).dtype == torch.float32
    return cast_from if exact and node.args[1:] == (torch.bfloat16,) else node


def _sparse(node: Any) -> Step:
    x, values, bias, crow, col, numbers, *relu = node.args
    require(is_signal(x), NOT_A_SIGNAL)
    own = Geometry.from_numbers([int(number) for number in numbers])
    others = own.dilation * (own.kernel_size - 1)  # samples that an output reads, besides one
    whole = own
    if own.padding_mode == "zeros" and own.left + own.right < others:
        # It is computed for as long a series: samples before the first one stay unread.
        whole = own._replace(left=max(0, others - own.right))
    geometry = list(whole)
    assert extension is not None
    require(
        extension.keeps_order(whole),
        "it lengthens series, has a stride, pads with other samples than the last, or is dilated "
        "widely",
    )
    _require_same_dtype(node, x)
    if in_rows(x):
        _require_blocks(_real(crow), _real(col), whole)
        values, bias = _before_cast(values), _before_cast(bias)

    def build(lanes: Lanes) -> Node:
        rest = values, bias, crow, col, geometry, *lanes.sizes(x), *relu
        return lanes.call(OPS.lanes_conv.default, lanes.of(x), *rest)

    padding = max(geometry[4:6]) if geometry[1] > 1 else 0  # taps of one channel become channels
    gain = cost("sparse", in_rows(x))
    return Step((x,), build, gain, margin=padding, exact=own.left > 0)


def dense(node: Any) -> Step:
    given = named(node, "input weight bias stride padding dilation groups")
    x, weight, bias = given["input"], given["weight"], given.get("bias")
    require(is_signal(x), NOT_A_SIGNAL)
    require(value_of(weight).shape[2] == 1, "it is dense, with more than one tap")
    plain = one(given.get("stride", 1)) == 1 and one(given.get("groups", 1)) == 1
    require(plain and one(given.get("padding", 0)) in (0, "same", "valid"), "it is not a plain 1x1")
    _require_same_dtype(node, x, weights=(weight, bias))
    if in_rows(x):
        rows, columns = (int(size) for size in value_of(weight).shape[:2])
        with outside_tracing():
            crow = torch.arange(rows * columns + 1, dtype=torch.int32)
            full = crow, torch.zeros(rows * columns, dtype=torch.int32)
        _require_blocks(*full, Geometry.of((rows, columns, 1), 1, 0, 1, 1, "zeros"))

    def build(lanes: Lanes) -> Node:
        return lanes.call(OPS.lanes_pointwise.default, lanes.of(x), weight, bias, *lanes.sizes(x))

    # The cost is that of many channels; torch multiplies a single one by numbers, which is as fast.
    gain = cost("pointwise", in_rows(x)) if value_of(weight).shape[1] > 1 else (0.0, 0.0)
    return Step((x,), build, gain, exact=False)


def _norm(node: Any) -> Step:
    given = named(node, "input running_mean running_var weight bias training momentum eps")
    x = given["input"]
    require(is_signal(x), NOT_A_SIGNAL)
    mean, var, weight, bias = (
        given.get(name) for name in ("running_mean", "running_var", "weight", "bias")
    )
    _require_same_dtype(node, x, weights=(mean, var, weight, bias))
    training, momentum = given.get("training", False), given.get("momentum", 0.1)
    require(isinstance(training, bool) and isinstance(momentum, float), "its momentum is computed")

    def build(lanes: Lanes) -> Node:
        how = training, momentum, given.get("eps", 1e-5), False, *lanes.sizes(x)
        vectors = weight, bias, mean, var, None
        norm = lanes.call(OPS.lanes_norm.default, [lanes.of(x)], *vectors, *how)
        return lanes.call(operator.getitem, norm, 0)

    return Step((x,), build, cost("norm", in_rows(x)))


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
        batch, _, length = value_of(x).shape
        apart = stride > 1 and stride >= size and padding == 0
        require(apart, "its windows are padded or overlap")
        require(is_signal(node) and all(isinstance(n, int) for n in (batch, length)), NOT_A_SIGNAL)
        assert extension is not None
        window = batch, length, value_of(x).dtype.itemsize, size, stride
        require(in_rows(x) or extension.pools_in_lanes(*window), "its windows are cut by lanes")

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


def _average(node: Any) -> Step:
    given = named(node, "input output_size")
    require(one(given["output_size"]) == 1, "it averages parts of a series")
    return _mean_step(given["input"], keepdim=True)


def _mean(node: Any) -> Step:
    given = named(node, "input dim keepdim")
    require(one(given.get("dim")) in (2, -1), "it does not average over samples alone")
    require(given.get("dtype") is None, "it changes the dtype")
    return _mean_step(given["input"], keepdim=bool(given.get("keepdim", False)))


def _cat(node: Any) -> Step:
    given = named(node, "tensors dim")
    parts = tuple(given["tensors"])
    require(given.get("dim", 0) in (1, -2), "it does not join channels")
    require(all(map(is_signal, parts)), "it joins other tensors than batches of series")
    _require_same_dtype(node, *parts)
    panels = all(value_of(part).shape[1] % PANEL == 0 for part in parts[:-1])
    require(panels or not in_rows(node), f"in rows it joins multiples of {PANEL} channels only")

    def build(lanes: Lanes) -> Node:
        return lanes.call(torch.cat, [lanes.of(part) for part in parts], 0)

    return Step(parts, build, cost("cat", in_rows(node)), exact=False)


def _narrow(node: Any) -> Step:
    x, dim, start, length = node.args
    require(is_signal(x), NOT_A_SIGNAL)
    if dim in (2, -1):
        return _crop(x, start, length)
    require(dim == 1, "it does not select channels")
    whole = (start + length) % PANEL == 0 or start + length == value_of(x).shape[1]
    panels = start % PANEL == 0 and whole
    require(panels or not in_rows(x), f"in rows it selects multiples of {PANEL} channels only")
    unit = PANEL if in_rows(x) else 1

    def build(lanes: Lanes) -> Node:
        return lanes.call(torch.narrow, lanes.of(x), 0, start // unit, -(-length // unit))

    return Step((x,), build, cost("narrow", in_rows(x)), exact=False)


def _crop(x: Any, start: Any, length: Any) -> Step:
    size = value_of(x).shape[2]
    require(all(isinstance(n, int) for n in (size, start, length)), "its length is dynamic")
    if start + length == size:  # samples before the first one stay unread
        return Step((x,), lambda lanes: lanes.of(x), (0.0, 0.0), exact=False)
    return _resampled(x, "crop", length, start=start)


def _pad(node: Any) -> Step:
    given = named(node, "input pad mode value")
    x, ends = given["input"], given["pad"]
    require(is_signal(x) and isinstance(value_of(x).shape[2], int), NOT_A_SIGNAL)
    require(len(ends) == 2 and all(isinstance(n, int) for n in ends), "it pads other dimensions")
    zeros = given.get("mode", "constant") == "constant" and given.get("value") in (None, 0)
    require(zeros, "it does not pad with zeros")
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


def _require_whole_windows(x: Any, samples: int, window: int) -> None:
    """Require that each window of so many samples is in one lane."""
    batch, _, length = value_of(x).shape
    ints = is_signal(x) and all(isinstance(n, int) for n in (batch, length))
    require(ints and samples > 1, NOT_A_SIGNAL)
    assert extension is not None
    longer = batch, max(length, samples), value_of(x).dtype.itemsize, window, window
    require(in_rows(x) or extension.pools_in_lanes(*longer), "its windows are cut by lanes")


def _upsample(node: Any) -> Step:
    names = "input size scale_factor mode align_corners recompute_scale_factor antialias"
    given = named(node, names)
    x, factor = given["input"], one(given.get("scale_factor"))
    require(is_signal(x), NOT_A_SIGNAL)
    require(given.get("mode", "nearest") == "nearest", "it interpolates")
    require(one(given.get("size")) is None and int(factor) == factor, "its factor is no integer")
    samples = value_of(x).shape[2] * int(factor)
    _require_whole_windows(x, samples, int(factor))
    return _resampled(x, "upsample", samples, repeat=int(factor))


def _average_pool(node: Any) -> Step:
    given = named(node, "input kernel_size stride padding ceil_mode count_include_pad")
    x, size = given["input"], one(given["kernel_size"])
    require(is_signal(x), NOT_A_SIGNAL)
    apart = (one(given.get("stride")) or size, one(given.get("padding", 0))) == (size, 0)
    require(apart and not given.get("ceil_mode"), "its windows are padded, overlap or are cut")
    samples = value_of(x).shape[2] // size
    _require_whole_windows(x, samples, size)
    return _resampled(x, "average_pool", samples, stride=size)


def _contiguous(node: Any) -> Step:
    x, *_ = node.args
    require(is_signal(x), NOT_A_SIGNAL)
    return Step((x,), lambda lanes: lanes.of(x), (0.0, 0.0), exact=False)


def _dropout(node: Any) -> Step:
    x, *_ = node.args
    p = named(node, "input p training").get("p", 0.5)
    trains = named(node, "input p training" if node.target is F.dropout else "input p train")
    require(is_signal(x), NOT_A_SIGNAL)
    require(isinstance(p, float | int), "its probability is computed")
    require(all(trains.get(name, True) is True for name in ("training", "train")), "it is off")

    def build(lanes: Lanes) -> Node:
        seed = lanes.call(draw_seed)
        return lanes.call(OPS.lanes_dropout.default, lanes.of(x), float(p), seed)

    return Step((x,), build, cost("dropout", in_rows(x)), exact=False)


def _prelu(node: Any) -> Step:
    x, weight = node.args
    require(is_signal(x), NOT_A_SIGNAL)
    require(not in_rows(x), "it has no rule in rows")
    _require_same_dtype(node, x, weight)

    def build(lanes: Lanes) -> Node:  # torch expects the channels in dimension 1
        y = lanes.call(torch.prelu, lanes.call(torch.unsqueeze, lanes.of(x), 0), weight)
        return lanes.call(torch.squeeze, y, 0)

    return Step((x,), build, cost("prelu", in_rows(x)), exact=False)


def _elementwise(node: Any) -> Step:
    """Functions of signals. Those that do not map zeros to zeros are masked where no sample is."""
    signals = tuple(node.all_input_nodes)
    shape = value_of(node).shape
    require(
        all(is_signal(x) and value_of(x).shape == shape for x in signals),
        "it combines a batch of series with another tensor",
    )
    _require_same_dtype(node, *signals)
    at_zero, slope = _at_zero(node)
    require(at_zero.isfinite() and slope.isfinite(), "it or its derivative is not finite at 0")
    masks = bool(at_zero != 0) and not in_rows(node)  # in rows, idle positions hold any numbers

    def build(lanes: Lanes) -> Node:
        def in_lanes(argument: Any) -> Any:
            return lanes.of(argument) if isinstance(argument, Node) else argument

        arguments = [in_lanes(argument) for argument in node.args]
        kwargs = {name: in_lanes(argument) for name, argument in node.kwargs.items()}
        y = lanes.call(node.target, *arguments, **kwargs)
        return lanes.call(torch.mul, y, lanes.samples(signals[0])) if masks else y

    # What is before the first sample has to stay finite: its gradient is zero.
    exact = node.target in (operator.truediv, torch.div, "div", torch.exp)
    return Step(signals, build, cost("elementwise", in_rows(node)), exact=exact)


def _at_zero(node: Any) -> tuple[Tensor, Tensor]:
    """Return a function's result for zeros, and its derivative there."""
    with outside_tracing(), torch.enable_grad():
        zero = torch.zeros((1,), requires_grad=True)

        def tried(argument: Any) -> Any:
            return zero if isinstance(argument, Node) else argument

        arguments = [tried(argument) for argument in node.args]
        kwargs = {name: tried(argument) for name, argument in node.kwargs.items()}
        if node.op == "call_method":
            y = getattr(arguments[0], str(node.target))(*arguments[1:], **kwargs)
        else:
            y = node.target(*arguments, **kwargs)
        (slope,) = torch.autograd.grad(y, zero, allow_unused=True, materialize_grads=True)
        return y, slope


_ELEMENTWISE = (
    *(operator.add, operator.sub, operator.mul, operator.truediv, operator.neg),
    *(torch.add, torch.sub, torch.mul, torch.div, torch.neg, torch.relu, torch.tanh),
    *(torch.sin, torch.abs, torch.square, torch.exp, torch.selu, torch.celu, torch.sigmoid),
    *(F.relu, F.relu6, F.leaky_relu, F.elu, F.celu, F.selu, F.gelu, F.silu, F.mish, F.softsign),
    *(F.hardtanh, F.hardswish, F.tanhshrink, F.softshrink, F.hardshrink, F.softplus, F.tanh),
    *(F.sigmoid, F.logsigmoid),
)
RULES: dict[Any, Callable[[Any], Step]] = {
    OPS.fprop.default: _sparse,
    torch.conv1d: dense,
    F.conv1d: dense,
    F.batch_norm: _norm,
    torch.max_pool1d: max_pool,
    F.max_pool1d: max_pool,
    torch.adaptive_avg_pool1d: _average,
    F.adaptive_avg_pool1d: _average,
    torch.mean: _mean,
    torch.narrow: _narrow,
    F.pad: _pad,
    torch._C._nn.pad: _pad,
    F.interpolate: _upsample,
    torch.avg_pool1d: _average_pool,
    F.avg_pool1d: _average_pool,
    torch.prelu: _prelu,
    torch.dropout: _dropout,
    F.dropout: _dropout,
    torch.cat: _cat,
    torch.concat: _cat,
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
}
_METHODS = ("add", "sub", "mul", "div", "neg", "relu", "tanh", "sigmoid", "abs")
# Methods of tensors, by their names.
METHODS: dict[Any, Callable[[Any], Step]] = {
    "mean": _mean,
    "contiguous": _contiguous,
    **dict.fromkeys(_METHODS, _elementwise),
}


def rule_of(node: Node) -> Callable[[Any], Step] | None:
    """Return the rule for an operation, whether it fits or not."""
    return {"call_function": RULES, "call_method": METHODS}.get(node.op, {}).get(node.target)
