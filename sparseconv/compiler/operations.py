"""Rules for operations: how each is computed on tensors in lanes, or in rows (see ``rules``)."""

from __future__ import annotations

import operator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from sparseconv.compiler.costs import cost
from sparseconv.compiler.steps import (
    OUTSIDE,
    Lanes,
    Step,
    in_rows,
    is_signal,
    named,
    of_op,
    one,
    require,
    require_same_dtype,
    require_signal,
    signal_of,
    switches_gradients,
    value_of,
)
from sparseconv.core.geometry import Geometry
from sparseconv.core.tracing import outside_tracing
from sparseconv.ops.backends import extension
from sparseconv.ops.lanes import OPS, PANEL, draw_seed
from sparseconv.ops.orders import pointwise_fits_rows

NO_BLOCKS = "its weights are no blocks of 16 x 16 channels, so they are not in rows"
MOST_POOLED = 15  # samples; the time is proportional to them (kPoolRadius in csrc/cpu/fused.h)


def _real(node: Any) -> Tensor | None:
    """Return the tensor that a node stands for, if it is known."""
    if node.op == "get_attr":
        return cast(Tensor, operator.attrgetter(node.target)(node.graph.owning_module))
    return cast("Tensor | None", node.meta.get("real"))


def _before_cast(node: Any) -> Any:
    """Return what autocast casts to bfloat16, which the kernels do themselves."""
    cast_from = node.args[0] if isinstance(node, Node) and node.target == "to" else None
    exact = cast_from is not None and value_of(cast_from).dtype == torch.float32
    return cast_from if exact and node.args[1:] == (torch.bfloat16,) else node


def _slower(gain: tuple[float, float], products: float) -> tuple[float, float]:
    """Reduce a gain by what multiply-adds in float32 take longer than in bfloat16."""
    without, with_gradients = cost("product", in_rows=False)
    return gain[0] + products * without, gain[1] + products * with_gradients


def sparse(node: Any) -> Step:
    x, values, bias, crow, col, numbers, *relu = node.args
    require_signal(x)
    require(all(isinstance(number, int) for number in numbers), "its geometry is traced")
    own = Geometry.from_numbers(list(numbers))
    others = own.dilation * (own.kernel_size - 1)  # samples that an output reads, besides one
    whole = own
    if own.padding_mode == "zeros" and own.left + own.right < others:
        # It is computed for as long a series: samples before the first one stay unread.
        require(isinstance(value_of(x).shape[2], int), "its length is dynamic, and changes")
        whole = own._replace(left=max(0, others - own.right))
    geometry = list(whole)
    assert extension is not None
    require(
        extension.keeps_order(whole),
        "it has a stride, lengthens series, or pads with other samples than zeros; replicated ends "
        "have a rule where they keep the length",
    )
    values, bias = _before_cast(values), _before_cast(bias)
    require_same_dtype(node, x, weights=(values, bias))
    padding = max(geometry[4:6]) if geometry[1] > 1 else 0  # taps of one channel become channels
    gain = cost("sparse", in_rows(x))
    if in_rows(x) or OUTSIDE in x.meta:
        known = _real(crow), _real(col)
        with outside_tracing():
            fits = any(index is None for index in known) or extension.fits_rows(*known, whole)
        require(fits or not in_rows(x), NO_BLOCKS)
        if fits and not in_rows(x):  # outside, it would be computed in blocks
            gain = _slower(gain, len(value_of(values)) / own.shape[0])

    def build(lanes: Lanes) -> Node:
        rest = values, bias, crow, col, geometry, *lanes.sizes(x), *relu
        return lanes.call(OPS.lanes_conv.default, lanes.of(x), *rest)

    return Step((x,), build, gain, margin=padding, exact=own.left > 0)


def dense(node: Any) -> Step:
    x, given = signal_of(node, "input weight bias stride padding dilation groups")
    weight, bias = given["weight"], given.get("bias")
    require(value_of(weight).shape[2] == 1, "it is dense, with more than one tap")
    plain = one(given.get("stride", 1)) == 1 and one(given.get("groups", 1)) == 1
    require(plain and one(given.get("padding", 0)) in (0, "same", "valid"), "it is not a plain 1x1")
    require_same_dtype(node, x, weights=(weight, bias))
    if in_rows(x):
        with outside_tracing():
            fits = pointwise_fits_rows(*map(int, value_of(weight).shape[:2]))
        require(fits, NO_BLOCKS)
    # The cost is that of many channels; torch multiplies a single one by numbers, which is as fast.
    what = "pointwise" if value_of(weight).shape[1] > 1 else ""
    step = of_op(x, what, OPS.lanes_pointwise.default, weight, bias, sized=True, exact=False)
    inputs = int(value_of(weight).shape[1])
    return step._replace(gain=_slower(step.gain, inputs)) if OUTSIDE in x.meta else step


def norm(node: Any) -> Step:
    names = "input running_mean running_var weight bias training momentum eps"
    x, given = signal_of(node, names)
    mean, var, weight, bias = (
        given.get(name) for name in ("running_mean", "running_var", "weight", "bias")
    )
    require_same_dtype(node, x, weights=(mean, var, weight, bias))
    training, momentum = given.get("training", False), given.get("momentum", 0.1)

    def build(lanes: Lanes) -> Node:
        how = training, momentum, given.get("eps", 1e-5), False, *lanes.sizes(x)
        vectors = weight, bias, mean, var, None
        norm = lanes.call(OPS.lanes_norm.default, [lanes.of(x)], *vectors, *how)
        return lanes.call(operator.getitem, norm, 0)

    return Step((x,), build, cost("norm", in_rows(x)))


def pooling(node: Any) -> tuple[Node, int, int, int]:
    """Return the input of a max pooling, its size, stride and padding."""
    names = "input kernel_size stride padding dilation ceil_mode return_indices"
    x, given = signal_of(node, names)
    size, dilation = one(given["kernel_size"]), one(given.get("dilation", 1))
    require(not given.get("return_indices"), "it also returns indices")
    require(dilation == 1 and not given.get("ceil_mode"), "it is dilated, or rounds lengths up")
    return x, size, one(given.get("stride")) or size, one(given.get("padding", 0))


def max_pool(node: Any) -> Step:
    x, size, stride, padding = pooling(node)
    stays = (stride, 2 * padding) == (1, size - 1)
    if stays:
        require(size <= MOST_POOLED, f"its window is longer than {MOST_POOLED} samples")
    else:
        apart = stride > 1 and stride >= size and padding == 0
        require(apart, "its windows are padded or overlap")
        _require_whole_windows(x, value_of(node).shape[2], size, stride)
    pooled = None if stays else value_of(node).shape[2]
    op = OPS.lanes_max_pool.default
    return of_op(x, "max_pool", op, size, stride, sized=True, length=pooled)


def _mean_step(x: Any, keepdim: bool) -> Step:
    def build(lanes: Lanes) -> Node:
        channels = int(value_of(x).shape[1])
        mean = lanes.call(OPS.lanes_mean.default, lanes.of(x), channels, *lanes.sizes(x))
        return lanes.call(torch.unsqueeze, mean, -1) if keepdim else mean

    return Step((x,), build, cost("mean", in_rows(x)), in_lanes=False)


def average(node: Any) -> Step:
    x, given = signal_of(node, "input output_size")
    require(one(given["output_size"]) == 1, "it averages parts of a series")
    return _mean_step(x, keepdim=True)


def mean(node: Any) -> Step:
    x, given = signal_of(node, "input dim keepdim")
    require(one(given.get("dim")) in (2, -1), "it does not average over samples alone")
    require(given.get("dtype") is None, "it changes the dtype")
    return _mean_step(x, keepdim=bool(given.get("keepdim", False)))


def crop(x: Any, start: Any, length: Any) -> Step:
    size = value_of(x).shape[2]
    require(isinstance(size, int), "its length is dynamic")
    # Samples before the first one stay unread, which may not change what is seen of them.
    seen = (start == 0 or not x.meta["hidden"]) and not switches_gradients(x.graph)
    if start + length == size and seen:
        return Step((x,), lambda lanes: lanes.of(x), (0.0, 0.0), exact=False)
    return _resampled(x, "crop", length, start=start)


def pad(node: Any) -> Step:
    x, given = signal_of(node, "input pad mode value")
    ends = given["pad"]
    require(isinstance(value_of(x).shape[2], int), "its length is dynamic")
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
    x, given = signal_of(node, names)
    factor = one(given.get("scale_factor"))
    require(given.get("mode", "nearest") == "nearest", "it interpolates")
    whole = one(given.get("size")) is None and isinstance(factor, int | float)
    require(whole and int(factor) == factor, "its factor is a fraction, or not known")
    repeat = int(factor)
    samples = value_of(x).shape[2] * repeat
    _require_whole_windows(x, samples, repeat, repeat)
    return _resampled(x, "upsample", samples, repeat=repeat)


def average_pool(node: Any) -> Step:
    x, given = signal_of(node, "input kernel_size stride padding ceil_mode count_include_pad")
    size = one(given["kernel_size"])
    apart = (one(given.get("stride")) or size, one(given.get("padding", 0))) == (size, 0)
    require(apart and not given.get("ceil_mode"), "its windows are padded, overlap or are cut")
    samples = value_of(x).shape[2] // size
    _require_whole_windows(x, samples, size, size)
    return _resampled(x, "average_pool", samples, stride=size)


def cat(node: Any) -> Step:
    given = named(node, "tensors dim")
    parts = tuple(given["tensors"])
    require(given.get("dim", 0) in (1, -2), "it does not join channels")
    require(all(map(is_signal, parts)), "it joins other tensors than batches of series")
    require_same_dtype(node, *parts)
    panels = all(value_of(part).shape[1] % PANEL == 0 for part in parts[:-1])
    require(panels or not in_rows(node), f"in rows it joins multiples of {PANEL} channels only")

    def build(lanes: Lanes) -> Node:
        return lanes.call(torch.cat, [lanes.of(part) for part in parts], 0)

    return Step(parts, build, cost("cat", in_rows(node)), exact=False)


def narrow(node: Any) -> Step:
    x, given = signal_of(node, "input dim start length")
    dim, start, length = (given[name] for name in ("dim", "start", "length"))
    require(isinstance(start, int) and isinstance(length, int), "its length is dynamic")
    if dim in (2, -1):
        return crop(x, start, length)
    require(dim == 1, "it does not select channels")
    whole = (start + length) % PANEL == 0 or start + length == value_of(x).shape[1]
    panels = start % PANEL == 0 and whole
    require(panels or not in_rows(x), f"in rows it selects multiples of {PANEL} channels only")
    unit = PANEL if in_rows(x) else 1
    first, width = start // unit, -(-length // unit)
    return of_op(x, "narrow", torch.narrow, 0, first, width, exact=False)


def cast_to(node: Any) -> Step:
    """Keep float32 where eager mode rounds to bfloat16."""
    x, given = signal_of(node, "input dtype")
    require(
        isinstance(given.get("dtype"), torch.dtype) and len(given) == 2,
        "it changes more than the dtype",
    )
    require(value_of(node).dtype == value_of(x).dtype, "it changes the dtype")
    require(not switches_gradients(node.graph), "parts of the graph run without gradients")
    return Step((x,), lambda lanes: lanes.of(x), (0.0, 0.0), exact=False)


def contiguous(node: Any) -> Step:
    x, _ = signal_of(node, "input")
    require(not switches_gradients(node.graph), "parts of the graph run without gradients")
    return Step((x,), lambda lanes: lanes.of(x), (0.0, 0.0), exact=False)


def dropout(node: Any) -> Step:
    x, given = signal_of(node, "input p training")
    p, trains = given.get("p", 0.5), given.get("training", given.get("train", True))
    require(isinstance(p, float | int), "its probability is computed")
    require(trains is True, "it is off")

    def build(lanes: Lanes) -> Node:
        seed = lanes.call(draw_seed)
        return lanes.call(OPS.lanes_dropout.default, lanes.of(x), float(p), seed)

    return Step((x,), build, cost("dropout", in_rows(x)), exact=False)


def prelu(node: Any) -> Step:
    x, given = signal_of(node, "input weight")
    weight = given["weight"]
    require(value_of(weight).dim() == 1, "its weight is a number")
    require(not in_rows(x), "it has no rule in rows")
    require_same_dtype(node, x, weight)
    return of_op(x, "prelu", OPS.prelu.default, weight, 0, exact=False)


def elementwise(node: Any) -> Step:
    """Functions of signals. Those that do not map zeros to zeros are masked where no sample is."""
    signals = tuple(node.all_input_nodes)
    shape = value_of(node).shape
    require(
        all(is_signal(x) and value_of(x).shape == shape for x in signals),
        "it combines a batch of series with another tensor",
    )
    require_same_dtype(node, *signals)
    at_zero, slope = _at_zero(node)
    require(at_zero.isfinite() and slope.isfinite(), "it or its derivative is not finite at 0")
    masks = bool(at_zero != 0) and not in_rows(node)  # in rows, idle positions hold any numbers

    def build(lanes: Lanes) -> Node:
        arguments, kwargs = map_arg((node.args, node.kwargs), lanes.of)
        y = lanes.call(node.target, *arguments, **kwargs)
        return lanes.call(torch.mul, y, lanes.samples(signals[0])) if masks else y

    # What is before the first sample has to stay finite: its gradient is zero.
    exact = node.target in (operator.truediv, torch.div, "div", torch.exp)
    return Step(signals, build, cost("elementwise", in_rows(node)), exact=exact)


def _at_zero(node: Any) -> tuple[Tensor, Tensor]:
    """Return a function's result for zeros, and its derivative there."""
    # The hooks of a checkpoint around the model are not for this computation.
    keep = torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x)
    with outside_tracing(), torch.enable_grad(), keep:
        zero = torch.zeros((1,), requires_grad=True)
        arguments, kwargs = map_arg((node.args, node.kwargs), lambda _: zero)
        if node.op == "call_method":
            y = getattr(arguments[0], str(node.target))(*arguments[1:], **kwargs)
        else:
            y = node.target(*arguments, **kwargs)
        (slope,) = torch.autograd.grad(y, zero, allow_unused=True, materialize_grads=True)
        return y.detach(), slope


def activation(x: Any, name: str) -> Step:
    require_signal(x)
    require(not in_rows(x), "it has no rule in rows")
    return of_op(x, name, OPS.lanes_activation.default, name, exact=False)


def elu(node: Any) -> Step:
    given = named(node, "input alpha inplace")
    if given.get("alpha", 1.0) != 1.0 or in_rows(node):
        return elementwise(node)
    return activation(given["input"], "elu")


def tanh(node: Any) -> Step:
    return elementwise(node) if in_rows(node) else activation(one(node.all_input_nodes), "tanh")


def glu(node: Any) -> Step:
    given = named(node, "input dim")
    require(given.get("dim", -1) in (1, -2), "it does not halve the channels")
    return activation(given["input"], "glu")


def gated_tanh(x: Tensor) -> Tensor:
    """Return the tanh of the first half of the channels times the sigmoid of the second."""
    filtered, gate = x.chunk(2, 1)
    return torch.tanh(filtered) * torch.sigmoid(gate)


ELEMENTWISE = (
    *(operator.add, operator.sub, operator.mul, operator.truediv, operator.neg),
    *(torch.add, torch.sub, torch.mul, torch.div, torch.neg, torch.relu),
    *(torch.sin, torch.abs, torch.square, torch.exp, torch.selu, torch.celu, torch.sigmoid),
    *(F.relu, F.relu6, F.leaky_relu, F.celu, F.selu, F.gelu, F.silu, F.mish, F.softsign),
    *(F.hardtanh, F.hardswish, F.tanhshrink, F.softshrink, F.hardshrink, F.softplus),
    *(F.sigmoid, F.logsigmoid),
)
