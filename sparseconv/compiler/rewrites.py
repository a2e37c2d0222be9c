"""Join operations in lanes: each function rewrites one pattern wherever it is found."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch.fx import Graph, Node

from sparseconv.compiler.functions import prelu
from sparseconv.compiler.rules import rule_of
from sparseconv.compiler.samples import max_pool, pooling
from sparseconv.compiler.steps import Outside, named, value_of
from sparseconv.ops.lanes import OPS

_NORM = OPS.lanes_norm.default
_POINTWISE = OPS.lanes_pointwise.default
_ADDITIONS = operator.add, torch.add, "add"
# Where these are among the arguments of ``lanes_norm``.
_PARTS, _ADDED, _TRAINING, _RELU = 0, 5, 6, 9


def rewrite(graph: Graph) -> None:
    """Apply all rewrites to a graph after it was lowered."""
    for rewrite_one in (_relu_after, _add_before_relu, _norm_of_parts, _add_after_pointwise):
        for node in list(graph.nodes):
            rewrite_one(graph, node)


def replace_slow_gradients(graph: Graph) -> None:
    """Replace max pooling and PReLU outside of lanes, whose gradients take torch a long time."""
    if not torch.is_grad_enabled():
        return
    for node in list(graph.nodes):
        rule = rule_of(node)
        arguments: tuple[Any, ...]
        try:
            if rule is max_pool:
                op, arguments = OPS.max_pool.default, pooling(node)
            elif rule is prelu and value_of(node).is_contiguous():  # or strides would change
                rule(node)
                given = named(node, "input weight")
                op, arguments = OPS.prelu.default, (given["input"], given["weight"], 1)
            else:
                continue
        except Outside:
            continue
        with graph.inserting_before(node):
            node.replace_all_uses_with(graph.call_function(op, arguments))
        graph.erase_node(node)


def _relu_after(graph: Graph, relu: Any) -> None:
    """Compute ReLU where BatchNorm stores its output."""
    before = _only_reader_of(relu) if _is_relu(relu) else None
    if before is None:
        return
    norm = _norm_behind(before)
    if norm is None:
        return
    norm.update_arg(_RELU, True)
    relu.replace_all_uses_with(before)
    graph.erase_node(relu)


def _add_before_relu(graph: Graph, relu: Any) -> None:
    """Compute ``relu(norm(x) + y)`` in one operation."""
    add: Any = _only_reader_of(relu) if _is_relu(relu) else None
    for output, other in _terms(add):
        norm = _norm_behind(output)
        if norm is None or norm.args[_RELU] or len(output.users) > 1:
            continue
        arguments = list(norm.args)
        arguments[_ADDED], arguments[_RELU] = other, True
        with graph.inserting_before(add):  # by then the other term has been computed
            again = graph.call_function(_NORM, tuple(arguments))
            result = graph.call_function(operator.getitem, (again, 0))
        relu.replace_all_uses_with(result)
        for node in (relu, add, output, norm):
            graph.erase_node(node)
        return


def _add_after_pointwise(graph: Graph, add: Any) -> None:
    """Compute ``conv(x) + y`` in one operation, if the convolution is a 1x1."""
    for output, other in _terms(add):
        if output.target is not _POINTWISE or len(output.args) > 5 or len(output.users) > 1:
            continue
        with graph.inserting_before(add):
            result = graph.call_function(_POINTWISE, (*output.args, other))
        add.replace_all_uses_with(result)
        for node in (add, output):
            graph.erase_node(node)
        return


def _norm_of_parts(graph: Graph, norm: Any) -> None:
    """Let BatchNorm read the parts of a concatenation, which then needs no copy."""
    if norm.target is not _NORM:
        return
    parts = list(norm.args[_PARTS])
    while cats := [
        part
        for part in parts
        if part.target is torch.cat
        and len(part.users) == 1
        and (*parts, norm.args[_ADDED]).count(part) == 1
    ]:
        at = parts.index(cats[0])
        parts[at : at + 1] = cats[0].args[0]
        norm.update_arg(_PARTS, parts)
        graph.erase_node(cats[0])


def _terms(add: Any) -> tuple[tuple[Any, Any], ...]:
    """Return the two terms of a sum of tensors in lanes, in both orders; of other nodes nothing."""
    if add is None or add.target not in _ADDITIONS or len(add.args) != 2 or add.kwargs:
        return ()
    first, second = add.args
    if not isinstance(first, Node) or not isinstance(second, Node) or first is second:
        return ()
    return (second, first), (first, second)


def _is_relu(node: Any) -> bool:
    return node.target in (torch.relu, F.relu, "relu")


def _only_reader_of(node: Any) -> Any:
    """Return the only input of a node, if no other node reads it."""
    (before,) = node.all_input_nodes
    return before if len(before.users) == 1 else None


def _norm_behind(output: Any) -> Any:
    """Return the BatchNorm of which this is the output."""
    if output.target is not operator.getitem or output.args[1] != 0:
        return None
    norm = output.args[0]
    return norm if norm.target is _NORM else None
