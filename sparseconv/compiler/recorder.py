"""Record the graph of functions that a computation calls, as Dynamo would."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.fx import Graph, Node
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

_OPERATORS = {"__getitem__": operator.getitem, "matmul": operator.matmul}


class Recorder(TorchFunctionMode):
    """Record torch's functions, while the mode is entered, in a graph whose inputs are tensors.

    Only one path through the code is seen: it must not depend on what tensors contain.
    """

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self._graph, self._root = Graph(), nn.Module()
        self._graph.owning_module = self._root  # type: ignore[assignment]
        self._nodes: dict[int, Node] = {}
        self._kept: list[Tensor] = []  # or others would get their ids and their memory
        for i, tensor in enumerate(inputs):
            self._note(self._graph.placeholder(f"input_{i}"), tensor)

    def returning(self, y: Tensor) -> Graph:
        """Return what computes ``y`` from the inputs."""
        self._graph.output(self._node_of(y))
        for node in reversed(list(self._graph.nodes)):
            if node.target is operator.getitem and not node.users:
                self._graph.erase_node(node)
        return self._graph

    def _note(self, node: Node, value: Any) -> None:
        node.meta["example_value"] = value
        if isinstance(value, Tensor):
            self._nodes[id(value)] = node
            self._kept.append(value)

    def _node_of(self, tensor: Tensor) -> Node:
        if id(tensor) not in self._nodes:
            name = f"constant_{len(self._nodes)}"
            self._root.register_buffer(name, tensor)
            self._note(self._graph.get_attr(name), tensor)
        return self._nodes[id(tensor)]

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name, kwargs = func.__name__, kwargs or {}
        found = func(*args, **kwargs)
        parts = found if isinstance(found, tuple | list) else ()
        if name == "__get__" or not isinstance((*parts, found)[0], Tensor):
            return found  # a question, as for the shape
        read = tree_map_only(Tensor, self._node_of, (args, kwargs))
        if name in _OPERATORS:
            node = self._graph.call_function(_OPERATORS[name], *read)
        elif getattr(Tensor, name, None) is func:
            node = self._graph.call_method(name, *read)
        else:
            node = self._graph.call_function(func, *read)
        self._note(node, found)
        for i, part in enumerate(parts):
            self._note(self._graph.call_function(operator.getitem, (node, i)), part)
        return found
