"""The table of rules: how an operation of a graph is computed on tensors in lanes.

A rule gets a node of a graph of torch's functions, and returns a ``Step``, or raises ``Outside``
with the reason why the node has none. Outputs must hold zeros where the order is idle: the ops in
``ops.lanes`` see to it, and other functions must map zeros to zeros.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node

from sparseconv.compiler.costs import GAINS
from sparseconv.core.geometry import Geometry
from sparseconv.core.tracing import outside_tracing
from sparseconv.ops.backends import extension
from sparseconv.ops.lanes import OPS

MOST_POOLED = 15  # samples; the time is proportional to them (kPoolRadius in csrc/cpu/fused.h)


class Outside(Exception):  # noqa: N818
    """The reason why an operation has no rule that fits."""


class Lanes(Protocol):
    """What a rule builds with: see ``lowering.Lowering``."""

    def call(self, target: Any, *args: Any, **kwargs: Any) -> Node: ...
    def of(self, signal: Node) -> Node: ...
    def sizes(self, signal: Node) -> tuple[Any, Any]: ...


class Step(NamedTuple):
    """What one node becomes.

    Attributes:
        signals: the arguments that are read in lanes.
        build: adds the nodes that compute the result.
        gain: nanoseconds saved for each element of the output, without and with gradients.
        in_lanes: whether the result is in lanes; else it is what the node gave.
    """

    signals: tuple[Node, ...]
    build: Callable[[Lanes], Node]
    gain: tuple[float, float]
    in_lanes: bool = True


def require(condition: Any, why: str) -> None:
    if not condition:
        raise Outside(why)


def value_of(node: Any) -> Any:
    """Return the fake tensor, or whatever else Dynamo recorded for a node."""
    return node.meta.get("example_value") if isinstance(node, Node) else None


def is_signal(node: Any) -> bool:
    """Return whether a node is a batch of series that fits lanes; one sample is not a series."""
    value = value_of(node)
    return (
        isinstance(value, Tensor)
        and value.dim() == 3
        and value.shape[2] != 1
        and value.dtype in (torch.float32, torch.float64)
        and value.device.type == "cpu"
        and value.layout is torch.strided
    )


def one(value: Any) -> Any:
    return value[0] if isinstance(value, tuple | list) and len(value) == 1 else value


def named(node: Node, names: str) -> dict[str, Any]:
    """Return a call's arguments by their names, as far as they were passed."""
    return dict(zip(names.split(), node.args, strict=False)) | dict(node.kwargs)


def _require_same_dtype(node: Node, *others: Any) -> None:
    dtype = value_of(node).dtype
    same = all(value_of(other).dtype == dtype for other in others if other is not None)
    require(same, "its tensors have several dtypes")


def _sparse(node: Any) -> Step:
    x, values, bias, crow, col, numbers, *relu = node.args
    require(is_signal(x), "it is not on a batch of float32 or float64 series on a CPU")
    geometry = [int(number) for number in numbers]
    assert extension is not None
    require(
        extension.keeps_order(Geometry.from_numbers(geometry)),
        "it changes the length, or pads with other samples than the last",
    )

    def build(lanes: Lanes) -> Node:
        rest = values, bias, crow, col, geometry, *lanes.sizes(x), *relu
        return lanes.call(OPS.lanes_conv.default, lanes.of(x), *rest)

    return Step((x,), build, GAINS["sparse"])


def _dense(node: Any) -> Step:
    given = named(node, "input weight bias stride padding dilation groups")
    x, weight, bias = given["input"], given["weight"], given.get("bias")
    require(is_signal(x), "it is not on a batch of float32 or float64 series on a CPU")
    require(value_of(weight).shape[2] == 1, "it is dense, with more than one tap")
    plain = one(given.get("stride", 1)) == 1 and one(given.get("groups", 1)) == 1
    require(plain and one(given.get("padding", 0)) in (0, "same", "valid"), "it is not a plain 1x1")
    _require_same_dtype(node, x, weight, bias)

    def build(lanes: Lanes) -> Node:
        return lanes.call(OPS.lanes_pointwise.default, lanes.of(x), weight, bias, *lanes.sizes(x))

    return Step((x,), build, GAINS["pointwise"])


def _norm(node: Any) -> Step:
    given = named(node, "input running_mean running_var weight bias training momentum eps")
    x = given["input"]
    require(is_signal(x), "it is not on a batch of float32 or float64 series on a CPU")
    mean, var, weight, bias = (
        given.get(name) for name in ("running_mean", "running_var", "weight", "bias")
    )
    _require_same_dtype(node, x, mean, var, weight, bias)
    training, momentum = given.get("training", False), given.get("momentum", 0.1)
    require(isinstance(training, bool) and isinstance(momentum, float), "its momentum is computed")

    def build(lanes: Lanes) -> Node:
        how = training, momentum, given.get("eps", 1e-5), False, *lanes.sizes(x)
        vectors = weight, bias, mean, var, None
        norm = lanes.call(OPS.lanes_norm.default, [lanes.of(x)], *vectors, *how)
        return lanes.call(operator.getitem, norm, 0)

    return Step((x,), build, GAINS["norm"])


def _max_pool(node: Any) -> Step:
    given = named(node, "input kernel_size stride padding dilation ceil_mode return_indices")
    x, size = given["input"], one(given["kernel_size"])
    require(is_signal(x), "it is not on a batch of float32 or float64 series on a CPU")
    keeps = (one(given.get("stride")) or size, 2 * one(given.get("padding", 0))) == (1, size - 1)
    require(keeps and one(given.get("dilation", 1)) == 1, "it changes the length")
    require(not given.get("return_indices"), "it also returns indices")
    require(size <= MOST_POOLED, f"its window is longer than {MOST_POOLED} samples")

    def build(lanes: Lanes) -> Node:
        return lanes.call(OPS.lanes_max_pool.default, lanes.of(x), size // 2, *lanes.sizes(x))

    return Step((x,), build, GAINS["max_pool"])


def _mean_step(x: Any, keepdim: bool) -> Step:
    require(is_signal(x), "it is not on a batch of float32 or float64 series on a CPU")

    def build(lanes: Lanes) -> Node:
        mean = lanes.call(OPS.lanes_mean.default, lanes.of(x), *lanes.sizes(x))
        return lanes.call(torch.unsqueeze, mean, -1) if keepdim else mean

    return Step((x,), build, GAINS["mean"], in_lanes=False)


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

    def build(lanes: Lanes) -> Node:
        return lanes.call(torch.cat, [lanes.of(part) for part in parts], 0)

    return Step(parts, build, GAINS["cat"])


def _elementwise(node: Any) -> Step:
    """Functions of signals that map zeros to zeros, where their derivative is finite."""
    signals = tuple(node.all_input_nodes)
    shape = value_of(node).shape
    require(
        all(is_signal(x) and value_of(x).shape == shape for x in signals),
        "it combines a batch of series with another tensor",
    )
    _require_same_dtype(node, *signals)
    require(_keeps_zeros(node), "it does not map 0 to 0")

    def build(lanes: Lanes) -> Node:
        def in_lanes(argument: Any) -> Any:
            return lanes.of(argument) if isinstance(argument, Node) else argument

        arguments = [in_lanes(argument) for argument in node.args]
        if node.op == "call_method":
            return lanes.call(str(node.target), *arguments, **node.kwargs)
        kwargs = {name: in_lanes(argument) for name, argument in node.kwargs.items()}
        return lanes.call(node.target, *arguments, **kwargs)

    return Step(signals, build, GAINS["elementwise"])


def _keeps_zeros(node: Any) -> bool:
    if node.target in (F.dropout, torch.dropout):  # tried out, it would draw a random number
        return True
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
        (slope,) = torch.autograd.grad(y, zero, allow_unused=True)
        return bool((y == 0).all()) and (slope is None or bool(slope.isfinite().all()))


_ELEMENTWISE = (
    *(operator.add, operator.sub, operator.mul, operator.truediv, operator.neg),
    *(torch.add, torch.sub, torch.mul, torch.div, torch.neg, torch.relu, torch.tanh),
    *(torch.sin, torch.abs, torch.square, torch.dropout, torch.selu, torch.celu, torch.sigmoid),
    *(F.relu, F.relu6, F.leaky_relu, F.elu, F.celu, F.selu, F.gelu, F.silu, F.mish, F.softsign),
    *(F.hardtanh, F.hardswish, F.tanhshrink, F.softshrink, F.hardshrink, F.softplus, F.tanh),
    *(F.sigmoid, F.logsigmoid, F.dropout),
)
RULES: dict[Any, Callable[[Any], Step]] = {
    OPS.fprop.default: _sparse,
    torch.conv1d: _dense,
    F.conv1d: _dense,
    F.batch_norm: _norm,
    torch.max_pool1d: _max_pool,
    F.max_pool1d: _max_pool,
    torch.adaptive_avg_pool1d: _average,
    F.adaptive_avg_pool1d: _average,
    torch.mean: _mean,
    torch.cat: _cat,
    torch.concat: _cat,
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
}
# Methods of tensors, by their names.
METHODS: dict[Any, Callable[[Any], Step]] = {
    "mean": _mean,
    **dict.fromkeys(("add", "sub", "mul", "div", "neg", "relu", "tanh", "abs"), _elementwise),
}


def rule_of(node: Node) -> Callable[[Any], Step] | None:
    """Return the rule for an operation, whether it fits or not."""
    return {"call_function": RULES, "call_method": METHODS}.get(node.op, {}).get(node.target)
