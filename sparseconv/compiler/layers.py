"""Rules for convolutions and BatchNorm."""

from __future__ import annotations

import operator
from typing import Any, cast

import torch
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
    one,
    require,
    require_same_dtype,
    value_of,
)
from sparseconv.core.geometry import Geometry
from sparseconv.core.tracing import outside_tracing
from sparseconv.ops.backends import extension
from sparseconv.ops.lanes import OPS


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


def sparse(node: Any) -> Step:
    x, values, bias, crow, col, numbers, *relu = node.args
    require(is_signal(x), NOT_A_SIGNAL)
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
    require_same_dtype(node, x)
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
    require_same_dtype(node, x, weights=(weight, bias))
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


def norm(node: Any) -> Step:
    given = named(node, "input running_mean running_var weight bias training momentum eps")
    x = given["input"]
    require(is_signal(x), NOT_A_SIGNAL)
    mean, var, weight, bias = (
        given.get(name) for name in ("running_mean", "running_var", "weight", "bias")
    )
    require_same_dtype(node, x, weights=(mean, var, weight, bias))
    training, momentum = given.get("training", False), given.get("momentum", 0.1)
    require(isinstance(training, bool) and isinstance(momentum, float), "its momentum is computed")

    def build(lanes: Lanes) -> Node:
        how = training, momentum, given.get("eps", 1e-5), False, *lanes.sizes(x)
        vectors = weight, bias, mean, var, None
        norm = lanes.call(OPS.lanes_norm.default, [lanes.of(x)], *vectors, *how)
        return lanes.call(operator.getitem, norm, 0)

    return Step((x,), build, cost("norm", in_rows(x)))
