"""Replace operations of a graph by those on tensors in lanes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.fx import Graph, Node

from sparseconv.compiler.steps import OUTSIDE, Step, in_rows, value_of
from sparseconv.ops.lanes import OPS

MOST_UNREAD = 2  # times as long as its signal a tensor may be


class Lowering:
    """Build what the nodes of ``steps`` become, and convert tensors at the borders.

    A tensor enters or leaves right after the node that computes it: later nodes may run without
    gradients. A convolution without padding, or a crop of the first samples, keeps the tensor as
    long as it was: any numbers then stand before a signal's first sample, whose gradients are zero.
    They are cropped where a step could read them.
    """

    def __init__(self, graph: Graph, steps: Mapping[Node, Step]) -> None:
        self.entered = self.left = 0
        self._graph, self._steps = graph, steps
        # Each signal's tensor in lanes, with the numbers of series and samples: as it was computed,
        # without samples before the signal's first one, and as the current step reads it.
        self._stored: dict[Node, tuple[Node, Any, Any]] = {}
        self._exact: dict[Node, tuple[Node, Any, Any]] = {}
        self._read: dict[Node, tuple[Node, Any, Any]] = {}
        self._samples: dict[Any, Node] = {}
        # In rows, convolutions find their padding in the tensor, and tensors meet in sums.
        self._margin = max((step.margin for step in steps.values()), default=0)

    def run(self) -> None:
        for node in [node for node in self._graph.nodes if node in self._steps]:
            step = self._steps[node]
            for signal in step.signals:
                if signal not in self._stored:
                    self._enter(signal)
            self._read = {signal: self._stored[signal] for signal in step.signals}
            if step.exact or len({length for *_, length in self._read.values()}) > 1:
                self._read = {signal: self._cropped(signal) for signal in step.signals}
            with self._graph.inserting_before(node):
                result = step.build(self)
                if step.in_lanes:
                    batch, length = self.sizes(step.signals[0])
                    length = step.length or length
                    self._stored[node] = result, batch, length
                    now = value_of(node).shape[2]
                    if isinstance(length, int) and length > MOST_UNREAD * now:
                        self._stored[node] = self._cropped(node)
                    if all(user in self._steps for user in node.users):
                        continue
                    channels = int(value_of(node).shape[1])
                    result, *sizes = self._cropped(node)
                    result = self.call(OPS.lanes_leave.default, result, channels, *sizes)
                    self.left += 1
                outside = node.meta.get(OUTSIDE, value_of(node).dtype)
                if outside != value_of(step.signals[0]).dtype:  # which is the result's
                    result = self.call("to", result, outside)
            result.meta.update(node.meta)
            node.replace_all_uses_with(result, delete_user_cb=lambda user: user not in self._steps)
            if not step.in_lanes:  # a step reads it, too
                node.replace_all_uses_with(result)
        for node in reversed(list(self._graph.nodes)):
            if node in self._steps:
                self._graph.erase_node(node)

    def _cropped(self, signal: Node) -> tuple[Node, Any, Any]:
        if signal not in self._exact:
            lanes, batch, length = self._stored[signal]
            now = value_of(signal).shape[2]
            if isinstance(length, int) and length != now:
                how = length - now, 1, 1, batch, length, now
                with self._graph.inserting_after(lanes):
                    lanes = self.call(OPS.lanes_resample.default, lanes, *how)
                length = now
            self._exact[signal] = lanes, batch, length
        return self._exact[signal]

    def _enter(self, signal: Node) -> None:
        after = signal
        while after.next.op == "placeholder":
            after = after.next
        with self._graph.inserting_after(after):
            margin = (self._margin,) if in_rows(signal) else ()
            entered = self.call(OPS.lanes_enter.default, signal, *margin)
        if OUTSIDE in signal.meta:
            with self._graph.inserting_before(entered):
                exact = self.call("to", signal, value_of(signal).dtype)
            entered.update_arg(0, exact)
        shape = value_of(signal).shape
        sizes = []
        for dim in (0, 2):
            size = shape[dim] if isinstance(shape[dim], int) else shape[dim].node.maybe_as_int()
            if size is None:  # an int, too, if a later operation, such as pooling, fixed it
                with self._graph.inserting_after(after):
                    size = self._graph.call_method("size", (signal, dim))
            sizes.append(size)
        self._stored[signal] = entered, sizes[0], sizes[1]
        self.entered += 1

    def call(self, target: Any, *args: Any, **kwargs: Any) -> Node:
        """Add a call of a function, or of the method of this name."""
        if isinstance(target, str):
            return self._graph.call_method(target, args, kwargs)
        return self._graph.call_function(target, args, kwargs)

    def of(self, signal: Node) -> Node:
        """Return a signal's node in lanes."""
        return self._read[signal][0]

    def samples(self, signal: Node) -> Node:
        """Return 1 where a sample of the signal is, and 0 where its order is idle."""
        batch, length = self.sizes(signal)
        key = batch, length, value_of(signal).dtype
        if key not in self._samples:
            ones = self.call(torch.ones, (batch, 1, length), dtype=key[2], device="cpu")
            self._samples[key] = self.call(OPS.lanes_enter.default, ones)
        return self._samples[key]

    def sizes(self, signal: Node) -> tuple[Any, Any]:
        """Return the numbers of series and samples, or the nodes that compute them."""
        return self._read[signal][1:]
