"""Replace operations of a graph by those on tensors in lanes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.fx import Graph, Node

from sparseconv.compiler.rules import Step, in_rows, value_of
from sparseconv.ops.lanes import OPS


class Lowering:
    """Build what the nodes of ``steps`` become, and convert tensors at the borders.

    A tensor enters or leaves right after the node that computes it: later nodes may run without
    gradients.
    """

    def __init__(self, graph: Graph, steps: Mapping[Node, Step]) -> None:
        self.entered = self.left = 0
        self._graph, self._steps = graph, steps
        self._lanes: dict[Node, Node] = {}
        self._sizes: dict[Node, tuple[Any, Any]] = {}
        self._samples: dict[Any, Node] = {}
        # In rows, convolutions find their padding in the tensor, and tensors meet in sums.
        self._margin = max((step.margin for step in steps.values()), default=0)

    def run(self) -> None:
        for node in [node for node in self._graph.nodes if node in self._steps]:
            step = self._steps[node]
            for signal in step.signals:
                if signal not in self._lanes:
                    self._enter(signal)
            with self._graph.inserting_before(node):
                result = step.build(self)
                if step.in_lanes:
                    batch, length = self._sizes[step.signals[0]]
                    self._lanes[node], self._sizes[node] = result, (batch, step.length or length)
                    if all(user in self._steps for user in node.users):
                        continue
                    channels = int(value_of(node).shape[1])
                    result = self.call(
                        OPS.lanes_leave.default, result, channels, *self._sizes[node]
                    )
                    self.left += 1
            result.meta.update(node.meta)
            node.replace_all_uses_with(result, delete_user_cb=lambda user: user not in self._steps)
            if not step.in_lanes:  # a step reads it, too
                node.replace_all_uses_with(result)
        for node in reversed(list(self._graph.nodes)):
            if node in self._steps:
                self._graph.erase_node(node)

    def _enter(self, signal: Node) -> None:
        after = signal
        while after.next.op == "placeholder":
            after = after.next
        with self._graph.inserting_after(after):
            margin = (self._margin,) if in_rows(signal) else ()
            self._lanes[signal] = self.call(OPS.lanes_enter.default, signal, *margin)
        shape = value_of(signal).shape
        sizes = []
        for dim in (0, 2):
            size = shape[dim]
            if not isinstance(size, int):
                with self._graph.inserting_after(after):
                    size = self._graph.call_method("size", (signal, dim))
            sizes.append(size)
        self._sizes[signal] = sizes[0], sizes[1]
        self.entered += 1

    def call(self, target: Any, *args: Any, **kwargs: Any) -> Node:
        """Add a call of a function, or of the method of this name."""
        if isinstance(target, str):
            return self._graph.call_method(target, args, kwargs)
        return self._graph.call_function(target, args, kwargs)

    def of(self, signal: Node) -> Node:
        """Return a signal's node in lanes."""
        return self._lanes[signal]

    def samples(self, signal: Node) -> Node:
        """Return 1 where a sample of the signal is, and 0 where its order is idle."""
        batch, length = self._sizes[signal]
        key = batch, length, value_of(signal).dtype
        if key not in self._samples:
            ones = self.call(torch.ones, (batch, 1, length), dtype=key[2], device="cpu")
            self._samples[key] = self.call(OPS.lanes_enter.default, ones)
        return self._samples[key]

    def sizes(self, signal: Node) -> tuple[Any, Any]:
        """Return the numbers of series and samples, or the nodes that compute them."""
        return self._sizes[signal]
