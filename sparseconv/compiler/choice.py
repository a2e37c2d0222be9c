"""Choose which operations are computed in lanes: those that save more than conversions cost."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping

import networkx
import torch
from torch.fx import Node

from sparseconv.compiler.costs import cost
from sparseconv.compiler.steps import Step, in_rows, value_of

_IN, _OUT = "in lanes", "outside"
_UNKNOWN = 64  # samples, where a dynamic size has no example


def choose(steps: Mapping[Node, Step]) -> set[Node]:
    """Return the nodes that are best computed in lanes, if every node of ``steps`` can be.

    This is a minimum cut. An operation outside forgoes its gain, and a tensor that is needed in
    both orders is converted once; the cut with the lowest sum is optimal for each connected part.
    """
    # An edge without capacity is never cut: networkx takes it as infinite.
    with_gradients = torch.is_grad_enabled()
    graph = networkx.DiGraph()
    graph.add_nodes_from((_IN, _OUT))
    readers: dict[Node, list[Node]] = defaultdict(list)
    for node, step in steps.items():
        gain = step.gain[with_gradients] * _elements(node)
        graph.add_edge(_IN, node, capacity=max(gain, 0))
        graph.add_edge(node, _OUT, capacity=max(-gain, 0))
        for signal in dict.fromkeys(step.signals):
            readers[signal].append(node)
    lanes = {node for node, step in steps.items() if step.in_lanes}
    for signal in dict.fromkeys((*readers, *lanes)):
        conversion = cost("conversion", in_rows(signal))[with_gradients] * _elements(signal)
        enter, leave = ("enter", signal), ("leave", signal)
        graph.add_edge(enter, signal if signal in lanes else _OUT, capacity=conversion)
        for reader in readers[signal]:
            graph.add_edge(reader, enter)
        if signal in lanes:
            graph.add_edge(signal, leave, capacity=conversion)
            for user in signal.users:
                graph.add_edge(leave, user if user in readers[signal] else _OUT)
    _, (chosen, _) = networkx.minimum_cut(graph, _IN, _OUT)
    return {node for node in steps if node in chosen}


def _elements(node: Node) -> int:
    shape = value_of(node).shape
    return math.prod(s if isinstance(s, int) else s.node.hint or _UNKNOWN for s in shape)
