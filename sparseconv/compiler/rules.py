"""The table of rules: how an operation of a graph is computed on tensors in lanes, or in rows.

Tensors of float32 and float64 are in lanes, those of bfloat16 in rows (``ops.lanes``). A rule gets
a node of a graph of torch's functions, and returns a ``Step``, or raises ``Outside`` with the
reason why the node has none. In lanes, outputs must hold zeros where the order is idle: the ops in
``ops.lanes`` see to it, and other functions map zeros to zeros or are masked. Before a signal's
first sample any numbers may be stored (``lowering.Lowering``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.fx import Graph, Node

from sparseconv.compiler import functions, layers, samples
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
    switches_gradients,
    value_of,
)
from sparseconv.ops.lanes import OPS, PANEL


def _cat(node: Any) -> Step:
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


def _narrow(node: Any) -> Step:
    given = named(node, "input dim start length")
    x, dim, start, length = (given[name] for name in ("input", "dim", "start", "length"))
    require(is_signal(x), NOT_A_SIGNAL)
    require(isinstance(start, int) and isinstance(length, int), "its length is dynamic")
    if dim in (2, -1):
        return samples.crop(x, start, length)
    require(dim == 1, "it does not select channels")
    whole = (start + length) % PANEL == 0 or start + length == value_of(x).shape[1]
    panels = start % PANEL == 0 and whole
    require(panels or not in_rows(x), f"in rows it selects multiples of {PANEL} channels only")
    unit = PANEL if in_rows(x) else 1

    def build(lanes: Lanes) -> Node:
        return lanes.call(torch.narrow, lanes.of(x), 0, start // unit, -(-length // unit))

    return Step((x,), build, cost("narrow", in_rows(x)), exact=False)


def _contiguous(node: Any) -> Step:
    x, *_ = node.args
    require(is_signal(x), NOT_A_SIGNAL)
    require(not switches_gradients(node.graph), "parts of the graph run without gradients")
    return Step((x,), lambda lanes: lanes.of(x), (0.0, 0.0), exact=False)


RULES: dict[Any, Callable[[Any], Step]] = {
    OPS.fprop.default: layers.sparse,
    torch.conv1d: layers.dense,
    F.conv1d: layers.dense,
    F.batch_norm: layers.norm,
    torch.max_pool1d: samples.max_pool,
    F.max_pool1d: samples.max_pool,
    torch.adaptive_avg_pool1d: samples.average,
    F.adaptive_avg_pool1d: samples.average,
    torch.mean: samples.mean,
    torch.narrow: _narrow,
    F.pad: samples.pad,
    torch._C._nn.pad: samples.pad,
    F.interpolate: samples.upsample,
    torch.avg_pool1d: samples.average_pool,
    F.avg_pool1d: samples.average_pool,
    torch.prelu: functions.prelu,
    torch.dropout: functions.dropout,
    F.dropout: functions.dropout,
    torch.cat: _cat,
    torch.concat: _cat,
    F.elu: functions.elu,
    F.glu: functions.glu,
    functions.gated_tanh: lambda node: functions.activation(node.args[0], "gated_tanh"),
    **dict.fromkeys(functions.ELEMENTWISE, functions.elementwise),
}
_METHODS = ("add", "sub", "mul", "div", "neg", "relu", "tanh", "sigmoid", "abs")
# Methods of tensors, by their names.
METHODS: dict[Any, Callable[[Any], Step]] = {
    "mean": samples.mean,
    "contiguous": _contiguous,
    **dict.fromkeys(_METHODS, functions.elementwise),
}


def rule_of(node: Node) -> Callable[[Any], Step] | None:
    """Return the rule for an operation, whether it fits or not."""
    return {"call_function": RULES, "call_method": METHODS}.get(node.op, {}).get(node.target)


_OF_SINGLE_SAMPLES = {
    *(_cat, _contiguous, layers.dense, functions.dropout, functions.prelu),
    *(functions.elementwise, functions.elu, functions.glu, RULES[functions.gated_tanh]),
}


def mark_hidden(graph: Graph) -> None:
    """Mark signals whose first samples come from a tensor of which only crops are read.

    They may be NaN or infinite, and nothing in eager mode would show it. What other operations
    read from the first sample on shows it anyway.
    """
    read_by_crops_only: set[Node] = set()
    for node in reversed(graph.nodes):
        alike = rule_of(node) in _OF_SINGLE_SAMPLES or node.target is torch.narrow
        node.meta["alike"] = alike
        if node.users and all(
            _crops(user) or (user.meta["alike"] and user in read_by_crops_only)
            for user in node.users
        ):
            read_by_crops_only.add(node)
    for node in graph.nodes:
        signals = filter(is_signal, node.all_input_nodes)
        node.meta["hidden"] = (
            any(x.meta["hidden"] for x in signals)
            if node.meta["alike"]
            else node in read_by_crops_only
        )


def _crops(node: Node) -> bool:
    """Return whether a node drops first samples."""
    return bool(node.target is torch.narrow and node.args[1] == 2 and node.args[2])
