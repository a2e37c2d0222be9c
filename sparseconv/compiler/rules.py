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

from sparseconv.compiler import operations
from sparseconv.compiler.steps import Step, is_signal, named
from sparseconv.ops.lanes import OPS

RULES: dict[Any, Callable[[Any], Step]] = {
    OPS.fprop.default: operations.sparse,
    torch.conv1d: operations.dense,
    F.batch_norm: operations.norm,
    torch.max_pool1d: operations.max_pool,
    F.max_pool1d: operations.max_pool,
    torch.adaptive_avg_pool1d: operations.average,
    torch.mean: operations.mean,
    torch.narrow: operations.narrow,
    F.pad: operations.pad,
    torch._C._nn.pad: operations.pad,
    F.interpolate: operations.upsample,
    torch.avg_pool1d: operations.average_pool,
    torch.prelu: operations.prelu,
    torch.dropout: operations.dropout,
    F.dropout: operations.dropout,
    torch.cat: operations.cat,
    torch.concat: operations.cat,
    F.elu: operations.elu,
    torch.tanh: operations.tanh,
    F.tanh: operations.tanh,
    F.glu: operations.glu,
    operations.gated_tanh: lambda node: operations.activation(node.args[0], "gated_tanh"),
    **dict.fromkeys(operations.ELEMENTWISE, operations.elementwise),
}
_METHODS = ("add", "sub", "mul", "div", "neg", "relu", "sigmoid", "abs")
# Methods of tensors, by their names.
METHODS: dict[Any, Callable[[Any], Step]] = {
    "mean": operations.mean,
    "contiguous": operations.contiguous,
    "tanh": operations.tanh,
    "to": operations.cast_to,
    **dict.fromkeys(_METHODS, operations.elementwise),
}


def rule_of(node: Node) -> Callable[[Any], Step] | None:
    """Return the rule for an operation, whether it fits or not."""
    return {"call_function": RULES, "call_method": METHODS}.get(node.op, {}).get(node.target)


_OF_SINGLE_SAMPLES = {
    *(
        operations.cat,
        operations.cast_to,
        operations.contiguous,
        operations.dense,
        operations.dropout,
        operations.prelu,
    ),
    *(operations.elementwise, operations.elu, operations.tanh, operations.glu),
    RULES[operations.gated_tanh],
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
    given = named(node, "input dim start length")
    return bool(node.target is torch.narrow and given["dim"] == 2 and given["start"])
