"""Make graphs functional: an operation in place changes what later nodes read under an old name."""

from __future__ import annotations

import functools
import inspect
import operator
from collections import defaultdict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from sparseconv.compiler.steps import Outside, is_series, named, switches_gradients, value_of

_OPERATORS = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow")
_FOLLOWED = {  # methods, by their functional names
    *(f"__{operation}__" for operation in _OPERATORS),
    *("add", "sub", "mul", "div", "pow", "neg", "abs", "square", "sqrt", "exp", "clamp"),
    *("relu", "sigmoid", "tanh"),
}
_FUNCTIONAL: dict[Any, Any] = {
    torch.relu_: torch.relu,
    **{getattr(operator, f"i{name}"): getattr(operator, name) for name in _OPERATORS},
}


def make_functional(graph: Graph) -> None:
    """Replace operations in place on signals by others, whose results later nodes read.

    Raises:
        Outside: an operation writes into a signal whose memory other tensors share, where parts of
            the graph run without gradients, or in a way that is not known here.
    """
    same: dict[int, int] = {}  # storages of what returns its input: fake tensors do not show it

    def storage(node: Node) -> int:
        own: int = value_of(node).untyped_storage()._cdata
        return same.get(own, own)

    for node in list(graph.nodes):
        if node.target in (F.dropout, torch.dropout):
            given = named(node, "input p training" if node.target is F.dropout else "input p train")
            if not given.get("training", given.get("train", True)):
                same[storage(node)] = storage(given["input"])
                node.replace_all_uses_with(given["input"])
                graph.erase_node(node)
    sharing = defaultdict(list)
    for node in graph.nodes:
        if isinstance(value_of(node), Tensor):
            sharing[storage(node)].append(node)
        body = node.op == "get_attr" and operator.attrgetter(node.target)(graph.owning_module)
        if isinstance(body, GraphModule) and any(map(is_series, map(_written, body.graph.nodes))):
            raise Outside(f"{node.name} writes into a signal, in a function with its own gradient")
    passed: list[Node] = []
    replaced: set[Node] = set()
    for node in list(graph.nodes):
        written = _written(node)
        before = set(passed)
        passed.append(node)
        if written is None:
            continue
        others = sharing[storage(written)] if isinstance(value_of(written), Tensor) else []
        if not any(map(is_series, others or node.all_input_nodes)):
            continue  # a counter of batches, for one
        alone = others and others[0].op != "placeholder"
        if not alone or not before.intersection(others[1:]) <= replaced:
            raise Outside(f"{node.name} writes into a signal whose memory other tensors share")
        if switches_gradients(graph):
            raise Outside(f"{node.name} writes into a signal, and parts run without gradients")
        if not _replace(node):
            raise Outside(f"{node.name} writes into a signal, and no function computes the same")
        computed = _in_its_dtype(node)
        replaced.update((node, computed))
        for user in written.users.keys() - before - {node}:
            user.replace_input_with(written, computed)


def keeps_places(graph: Graph) -> bool:
    """Return whether no operation may move: gradients are switched, or weights are written."""
    written = (value_of(_written(node)) for node in graph.nodes)
    floats = any(isinstance(x, Tensor) and x.is_floating_point() for x in written)
    return floats or switches_gradients(graph)


def _in_its_dtype(node: Node) -> Node:
    """Cast what a node computes to the dtype of the tensor that it wrote into."""
    value = value_of(node)
    terms = [value_of(x) for x in node.all_input_nodes]
    dtypes = [x.dtype for x in terms if isinstance(x, Tensor) and x.dim()]
    promoted = functools.reduce(torch.promote_types, dtypes)
    if promoted == value.dtype:
        return node
    with node.graph.inserting_after(node):
        cast = node.graph.call_method("to", (node, value.dtype))
    node.replace_all_uses_with(cast, delete_user_cb=lambda user: user is not cast)
    cast.meta.update(node.meta)
    node.meta["example_value"] = value.to(promoted)
    return cast


def _written(node: Node) -> Any:
    """Return the node whose tensor this one changes, or an unknown argument that it changes."""
    target: Any = node.target
    name = str(target if node.op == "call_method" else getattr(target, "__name__", ""))
    if node.op not in ("call_method", "call_function"):
        return None
    if node.kwargs.get("out") is not None:
        return node.kwargs["out"]
    if isinstance(target, torch._ops.OpOverload):
        schema = target._schema.arguments
        given = dict(zip((of.name for of in schema), node.args, strict=False)) | dict(node.kwargs)
        return next((given.get(of.name) for of in schema if of.is_write), None)
    if _functional_name(name) != name or target is operator.setitem or target in _FUNCTIONAL:
        return node.args[0] if node.args else node.kwargs
    return (_if_in_place(node) or {}).get("input")


def _functional_name(name: str) -> str:
    """Return ``"add"`` for ``"add_"``, ``"__add__"`` for ``"__iadd__"``, and other names as is."""
    if name in {f"__i{operation}__" for operation in _OPERATORS}:
        return "__" + name[3:]
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name


def _if_in_place(node: Node) -> dict[str, Any] | None:
    """Return the arguments of a function that was called with ``inplace=True``."""
    target: Any = node.target
    try:
        names = " ".join(inspect.signature(target).parameters)
    except (TypeError, ValueError):
        return None
    given = named(node, names)
    return given if given.get("inplace") else None


def _replace(node: Node) -> bool:
    """Let a node compute a new tensor; return whether it can."""
    given = _if_in_place(node) if node.op == "call_function" else None
    if given is not None:
        del given["inplace"]
        node.args, node.kwargs = (given.pop("input"),), given
    elif node.op == "call_method" and _functional_name(str(node.target)) in _FOLLOWED:
        node.target = _functional_name(str(node.target))
    elif node.target in _FUNCTIONAL and node.args:
        node.target = _FUNCTIONAL[node.target]
    else:
        return False
    return True
