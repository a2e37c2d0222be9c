"""The backend of ``torch.compile``: from a graph to one that computes in lanes."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from sparseconv.compiler import rewrites
from sparseconv.compiler.choice import choose
from sparseconv.compiler.inplace import keeps_places, make_functional
from sparseconv.compiler.lowering import Lowering
from sparseconv.compiler.report import GraphReport, remember
from sparseconv.compiler.rules import mark_hidden, rule_of
from sparseconv.compiler.steps import (
    Outside,
    Step,
    is_permuted,
    is_signal,
    mark_float32,
    require,
    value_of,
)
from sparseconv.core.checks import OVERWRITTEN
from sparseconv.ops.backends import extension


def sparseconv(gm: GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
    """Compile a graph of torch's functions, for ``torch.compile(model, backend="sparseconv")``.

    Tensors stay in the kernels' own memory order from one operation to the next, wherever this
    saves more than converting them costs. What has no rule runs as it is.
    """
    checkpoint = torch.ops.higher_order.tag_activation_checkpoint
    if gm.graph.find_nodes(op="call_function", target=checkpoint):  # AOTAutograd repeats its parts
        remember(example_inputs, GraphReport(outside={"torch computes checkpoints": ["all"]}))
        return torch._dynamo.lookup_backend("aot_eager")(gm, list(example_inputs))
    gm.graph, report = rewrite(gm.graph, example_inputs)
    remember(example_inputs, report)
    return gm.forward


def rewrite(graph: Graph, example_inputs: Sequence[Any]) -> tuple[Graph, GraphReport]:
    """Return what computes the same in lanes, and what was done."""
    for node, tensor in zip(graph.find_nodes(op="placeholder"), example_inputs, strict=True):
        node.meta["real"] = tensor
    graph, report = _lower_best(graph)
    _call_directly(graph)
    graph.lint()
    return graph, report


def _lower_best(graph: Graph) -> tuple[Graph, GraphReport]:
    """Rewrite a graph, and say what was done."""
    _drop_dead(graph)
    if extension is None:
        return graph, GraphReport()
    try:
        make_functional(graph)
    except Outside as reason:
        return graph, GraphReport(outside={str(reason): ["all"]})
    _compare_versions(graph)
    rewrites.drop_casts(graph)
    ways = [graph]
    if torch.is_autocast_enabled("cpu"):  # or casts would be the user's
        wide = copy.deepcopy(graph)
        wide.owning_module = graph.owning_module
        mark_float32(wide)
        ways.insert(0, wide)
    better, report, _ = max(map(_lower, ways), key=lambda way: way[2])
    return better, report


def _lower(graph: Graph) -> tuple[Graph, GraphReport, float]:
    """Rewrite a functional graph, and say what was done, and how many nanoseconds it saves."""
    report = GraphReport()

    def leave_out(node: Node, why: str) -> None:
        report.outside.setdefault(why, []).append(f"{_title(node)} in {_module_of(node)}")

    fixed = keeps_places(graph)
    rewrites.simplify(graph, fixed)
    mark_hidden(graph)
    steps: dict[Node, Step] = {}
    for node in graph.nodes:
        rule = rule_of(node)
        try:
            if rule is not None and isinstance(value_of(node), Tensor):
                require(not is_permuted(value_of(node)), "its result is stored in another order")
                steps[node] = rule(node)
            elif _touches_series(node):
                raise Outside("it has no rule")
        except Outside as reason:
            if _touches_series(node):
                leave_out(node, str(reason))
    chosen, saved = choose(steps)
    for node in steps:
        if node not in chosen:
            leave_out(node, "converting its tensors would cost more than it saves")
    report.modules = list(dict.fromkeys(_module_of(node) for node in steps if node in chosen))
    before = set(graph.nodes)
    lowering = Lowering(graph, {node: step for node, step in steps.items() if node in chosen})
    lowering.run()
    if not fixed:
        rewrites.join_in_lanes(graph)
    _drop_dead(graph)
    report.enters, report.leaves = lowering.entered, lowering.left
    report.lanes = Counter(_title(node) for node in graph.nodes if node not in before)
    for helper in ("lanes_enter", "lanes_leave", "getitem", "size", "unsqueeze"):
        del report.lanes[helper]
    rewrites.replace_slow_gradients(graph)
    return graph, report, saved


def _compare_versions(graph: Graph) -> None:
    """Compare the content of a layer's indices only after writes that torch counts."""
    for assertion in graph.find_nodes(op="call_function", target=torch._assert_async):
        if OVERWRITTEN not in assertion.args:
            continue  # the user's
        intact = assertion.args[0]
        # (crow == known_crow).all() & (col == known_col).all(), from nn/pattern_buffers.py
        comparisons = [comparison for equal in intact.args for comparison in equal.args]
        arguments = tuple(side for comparison in comparisons for side in comparison.args)
        with graph.inserting_before(assertion):
            graph.call_function(_require_intact(), arguments)
        for node in (assertion, intact, *intact.args, *comparisons):
            graph.erase_node(node)


def _require_intact() -> Callable[..., None]:
    seen: tuple[Any, Any, int] = None, None, 0

    def require_intact(crow: Tensor, known_crow: Tensor, col: Tensor, known_col: Tensor) -> None:
        nonlocal seen
        counts_writes = not (crow.is_inference() or col.is_inference())
        version = crow._version + col._version if counts_writes else -1
        if crow is not seen[0] or col is not seen[1] or version != seen[2]:
            if not (crow.equal(known_crow) and col.equal(known_col)):
                raise RuntimeError(OVERWRITTEN)
            seen = (crow, col, version) if counts_writes else (None, None, 0)

    return require_intact


def _call_directly(graph: Graph) -> None:
    """Call the ops without torch's parser of arguments, which takes longer than a small layer."""
    for node in graph.nodes:
        op = node.target
        direct = isinstance(op, torch._ops.OpOverload) and getattr(extension, op._opname, None)
        if direct and op.namespace == "sparseconv":
            rest = op._schema.arguments[len(node.args) :]
            node.args += tuple(node.kwargs.get(a.name, a.default_value) for a in rest)
            node.kwargs, node.target = {}, direct


def _title(node: Node) -> str:
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._opname
    return str(getattr(node.target, "__name__", node.target))


def _module_of(node: Node) -> str:
    stack = node.meta.get("nn_module_stack")
    return (list(stack.values())[-1][0].partition("].")[2] if stack else "") or "the model"


def _touches_series(node: Node) -> bool:
    if node.op not in ("call_function", "call_method"):
        return False
    is_size = isinstance(value_of(node), int | torch.SymInt)
    return not is_size and any(map(is_signal, (node, *node.all_input_nodes)))


def _drop_dead(graph: Graph) -> None:
    """Erase casts and answers to questions about the state of torch, which nothing reads."""
    for node in reversed(list(graph.nodes)):
        answer = node.op == "call_function" and isinstance(value_of(node), bool)
        if not node.users and (answer or (node.op, node.target) == ("call_method", "to")):
            graph.erase_node(node)
