"""Rules for functions of single samples, and for gates, which join two channels."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node

from sparseconv.compiler.costs import cost
from sparseconv.compiler.steps import (
    NOT_A_SIGNAL,
    Lanes,
    Step,
    in_rows,
    is_signal,
    named,
    require,
    require_same_dtype,
    value_of,
)
from sparseconv.core.tracing import outside_tracing
from sparseconv.ops.lanes import OPS, draw_seed


def dropout(node: Any) -> Step:
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


def prelu(node: Any) -> Step:
    given = named(node, "input weight")
    x, weight = given["input"], given["weight"]
    require(is_signal(x), NOT_A_SIGNAL)
    require(value_of(weight).dim() == 1, "its weight is a number")
    require(not in_rows(x), "it has no rule in rows")
    require_same_dtype(node, x, weight)

    def build(lanes: Lanes) -> Node:
        return lanes.call(OPS.prelu.default, lanes.of(x), weight, 0)

    return Step((x,), build, cost("prelu", in_rows(x)), exact=False)


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


def activation(x: Any, name: str) -> Step:
    require(is_signal(x), NOT_A_SIGNAL)
    require(not in_rows(x), "it has no rule in rows")

    def build(lanes: Lanes) -> Node:
        return lanes.call(OPS.lanes_activation.default, lanes.of(x), name)

    return Step((x,), build, cost(name, False), exact=False)


def elu(node: Any) -> Step:
    given = named(node, "input alpha inplace")
    if given.get("alpha", 1.0) != 1.0 or in_rows(node):
        return elementwise(node)
    return activation(given["input"], "elu")


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
    *(torch.add, torch.sub, torch.mul, torch.div, torch.neg, torch.relu, torch.tanh),
    *(torch.sin, torch.abs, torch.square, torch.exp, torch.selu, torch.celu, torch.sigmoid),
    *(F.relu, F.relu6, F.leaky_relu, F.celu, F.selu, F.gelu, F.silu, F.mish, F.softsign),
    *(F.hardtanh, F.hardswish, F.tanhshrink, F.softshrink, F.hardshrink, F.softplus, F.tanh),
    *(F.sigmoid, F.logsigmoid),
)
