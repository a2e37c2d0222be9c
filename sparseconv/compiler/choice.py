"""Choose which operations are computed in lanes: those that save more than conversions cost."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping

import torch
from torch.fx import Node

from sparseconv.compiler.costs import cost
from sparseconv.compiler.steps import OUTSIDE, Step, in_rows, value_of
from sparseconv.ops.lanes import PANEL

_IN, _OUT = "in lanes", "outside"
_UNKNOWN = 64  # samples, where a dynamic size has no example


def choose(steps: Mapping[Node, Step]) -> tuple[set[Node], float]:
    """Return the nodes that are best computed in lanes, if every node of ``steps`` can be.

    The second result is the time that this saves, in nanoseconds.

    This is a minimum cut. An operation outside forgoes its gain, and a tensor that is needed in
    both orders is converted once; the cut with the lowest sum is optimal for each connected part.
    """
    import networkx  # only here, as it takes 0.2 s

    # An edge without capacity is never cut: networkx takes it as infinite.
    with_gradients, all_gains = torch.is_grad_enabled(), 0.0
    graph = networkx.DiGraph()
    graph.add_nodes_from((_IN, _OUT))
    readers: dict[Node, list[Node]] = defaultdict(list)
    for node, step in steps.items():
        gain = step.gain[with_gradients] * _elements(node)
        if in_rows(node):
            gain += cost("idle", True)[with_gradients] * (_elements(node, PANEL) - _elements(node))
        all_gains += max(gain, 0)
        graph.add_edge(_IN, node, capacity=max(gain, 0))
        graph.add_edge(node, _OUT, capacity=max(-gain, 0))
        for signal in dict.fromkeys(step.signals):
            readers[signal].append(node)
    lanes = {node for node, step in steps.items() if step.in_lanes}
    for signal in dict.fromkeys((*readers, *lanes)):
        kinds = ("conversion", "cast") if OUTSIDE in signal.meta else ("conversion",)
        costs = (cost(kind, in_rows(signal))[with_gradients] for kind in kinds)
        conversion = sum(costs) * _elements(signal, PANEL if in_rows(signal) else 1)
        enter, leave = ("enter", signal), ("leave", signal)
        graph.add_edge(enter, signal if signal in lanes else _OUT, capacity=conversion)
        for reader in readers[signal]:
            graph.add_edge(reader, enter)
        if signal in lanes:
            graph.add_edge(signal, leave, capacity=conversion)
            for user in signal.users:
                graph.add_edge(leave, user if user in readers[signal] else _OUT)
    lost, (chosen, _) = networkx.minimum_cut(graph, _IN, _OUT)
    return {node for node in steps if node in chosen}, all_gains - lost


def _elements(node: Node, panel: int = 1) -> int:
    """Return the number of elements, with channels up to a multiple of ``panel``."""
    batch, channels, *samples = (
        s if isinstance(s, int) else s.node.hint or _UNKNOWN for s in value_of(node).shape
    )
    return batch * -(-channels // panel) * panel * math.prod(samples)
