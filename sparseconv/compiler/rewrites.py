"""Rewrite graphs, before rules read them and in lanes: each function rewrites one pattern."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch.fx import Graph, Node

from sparseconv.compiler.operations import dense, gated_tanh, max_pool, pooling, prelu
from sparseconv.compiler.rules import rule_of
from sparseconv.compiler.steps import (
    OUTSIDE,
    Outside,
    in_rows,
    is_signal,
    named,
    value_of,
)
from sparseconv.core.geometry import PADDING_MODES, Geometry
from sparseconv.ops.lanes import OPS

_CONV = OPS.fprop.default
_GEOMETRY = 5  # among its arguments
# The convolutions in which BatchNorm is folded, and the names of their arguments.
_FOLDED = {
    _CONV: "input weight bias crow_indices col_indices geometry relu",
    torch.conv1d: "input weight bias",
}
_PADS = (F.pad, torch._C._nn.pad)
_SPLITS = (torch.chunk, torch.split, "chunk", "split")
_NORM = OPS.lanes_norm.default
_POINTWISE = OPS.lanes_pointwise.default
_ADDITIONS = operator.add, torch.add, "add"
# Where these are among the arguments of ``lanes_norm``.
_PARTS, _STATISTICS, _ADDED, _RELU = 0, slice(3, 5), 5, 9


def simplify(graph: Graph, fixed: bool) -> None:
    """Apply all rewrites to a functional graph, or those that move nothing."""
    alone = _parts_of_split, _narrow
    joins = (
        _gate,
        _crop_after_conv,
        _pad_before_conv,
        _pool_after_conv,
        _fold_norm,
        _relu_after_conv,
    )
    for rewrite in alone if fixed else (*alone, *joins):
        for node in list(graph.nodes):
            rewrite(graph, node)


def _replace(graph: Graph, node: Node, by: Node) -> None:
    node.replace_all_uses_with(by)
    graph.erase_node(node)


def _call_instead(graph: Graph, node: Node, target: Any, args: Any, kwargs: Any = None) -> None:
    """Replace a node by a call that computes the same."""
    with graph.inserting_before(node):
        call = graph.call_function(target, args, kwargs)
    call.meta.update(node.meta)
    _replace(graph, node, call)


def drop_casts(graph: Graph) -> None:
    """Erase casts to the same dtype, which autocast leaves before each layer."""
    for node in graph.find_nodes(op="call_method", target="to"):
        x, *to = node.args
        if not node.kwargs and to == [getattr(value_of(x), "dtype", None)]:
            _replace(graph, node, x)


def _as_narrow(graph: Graph, node: Node, x: Node, dim: int, start: int) -> None:
    length = int(value_of(node).shape[dim])
    _call_instead(graph, node, torch.narrow, (x, dim, start, length))


def _parts_of_split(graph: Graph, node: Any) -> None:
    """Turn the parts of ``chunk`` and ``split`` over channels into ``narrow``."""
    if node.target not in _SPLITS:
        return
    given = named(node, "input sizes dim")
    x: Any = given.get("input", given.get("tensor"))
    parts = [user for user in node.users if user.target is operator.getitem]
    if not is_signal(x) or given.get("dim", 0) not in (1, -2) or len(parts) < len(node.users):
        return
    widths = [int(part.shape[1]) for part in value_of(node)]
    for part in parts:
        i = part.args[1] % len(widths)
        _as_narrow(graph, part, x, 1, sum(widths[:i]))
    graph.erase_node(node)


def _narrow(graph: Graph, node: Any) -> None:
    """Turn slicing of one dimension into ``narrow``."""
    if node.target in ("narrow", torch.narrow) and is_signal(node):
        given = named(node, "input dim start length")
        x, dim, start = given["input"], given["dim"] % 3, given["start"]
        if is_signal(x) and isinstance(start, int) and dim > 0:
            size = value_of(x).shape[dim]
            if start >= 0 or isinstance(size, int):
                _as_narrow(graph, node, x, dim, start if start >= 0 else start + size)
        return
    if node.target is not operator.getitem or not (is_signal(node.args[0]) and is_signal(node)):
        return
    x, index = node.args
    index = list(index) if isinstance(index, tuple) else [index]
    if index[:1] == [...]:
        index = [slice(None)] * (4 - len(index)) + index[1:]
    cut = [dim for dim, part in enumerate(index) if part != slice(None)]
    if len(cut) == 1 and isinstance(index[cut[0]], slice):
        (dim,) = cut
        ends, size = index[dim], value_of(x).shape[dim]
        numbers = (ends.start, ends.stop, ends.step, size)
        if dim > 0 and all(n is None or isinstance(n, int) for n in numbers):
            start, stop, step = ends.indices(size)
            if step == 1 and start < stop:
                _as_narrow(graph, node, x, dim, start)


def _gate(graph: Graph, node: Any) -> None:
    """Join the product of one half of the channels' tanh and the other's sigmoid."""
    product = node.target in (operator.mul, torch.mul, "mul") and is_signal(node)
    if not product or len(node.all_input_nodes) != 2 or in_rows(node):
        return
    halves = {}
    for function in node.all_input_nodes:
        half, *others = function.all_input_nodes or (node,)
        alone = not others and len(function.users) == len(half.users) == 1
        if alone and half.target is torch.narrow and half.args[1:2] == (1,):
            halves[getattr(function.target, "__name__", function.target)] = half.args
    if set(halves) != {"tanh", "sigmoid"}:
        return
    (x, _, first, width), (gated, _, second, _) = halves["tanh"], halves["sigmoid"]
    whole = value_of(x).shape[1]
    if x is gated and (first, second, whole) == (0, width, 2 * width):
        functions = node.all_input_nodes
        _call_instead(graph, node, gated_tanh, (x,))
        for function in functions:
            (half,) = function.all_input_nodes
            graph.erase_node(function)
            graph.erase_node(half)


def _crop_after_conv(graph: Graph, node: Any) -> None:
    """Let a convolution pad less instead of computing samples that are cut off."""
    if node.target is not torch.narrow or len(node.args) < 4 or node.args[1] != 2:
        return
    conv, _, start, length = node.args
    size = getattr(value_of(conv), "shape", (None,))[-1]
    if conv.target is not _CONV or len(conv.users) > 1 or not isinstance(size, int):
        return
    numbers = list(conv.args[_GEOMETRY])
    after = size - start - length
    if numbers[3] == 1 and start <= numbers[4] and after <= numbers[5]:
        numbers[4:6] = numbers[4] - start, numbers[5] - after
        conv.update_arg(_GEOMETRY, numbers)
        conv.meta.update(node.meta)
        _replace(graph, node, conv)


def _pad_before_conv(graph: Graph, conv: Any) -> None:
    """Let a convolution pad its input itself."""
    pad = conv.args[0] if conv.target is _CONV else None
    if pad is None or pad.target not in _PADS:
        return
    given = named(pad, "input pad mode value")
    x, ends, mode = given["input"], given["pad"], given.get("mode", "constant")
    numbers = list(conv.args[_GEOMETRY])
    own = Geometry.from_numbers(numbers)
    if not is_signal(x) or len(ends) != 2 or not all(isinstance(n, int) and n >= 0 for n in ends):
        return
    if mode == "constant" and given.get("value") in (None, 0) and own.padding_mode == "zeros":
        whole = own._replace(left=ends[0] + own.left, right=ends[1] + own.right)
    elif mode == "replicate" and own.padding == (0, 0):
        whole = own._replace(left=ends[0], right=ends[1], mode=PADDING_MODES.index("replicate"))
    else:
        return
    conv.update_arg(_GEOMETRY, list(whole))
    conv.update_arg(0, x)
    if not pad.users:
        graph.erase_node(pad)


def _pool_after_conv(graph: Graph, conv: Any) -> None:
    """Swap averages over samples and the 1x1 convolution after them, if it reduces channels."""
    pool = conv.args[0] if rule_of(conv) is dense and conv.args else None
    if pool is None or len(pool.users) > 1 or len(pool.args) < 2:
        return
    # A product with any matrix is one, but would also multiply a bias.
    product = pool.target in (operator.matmul, torch.matmul) and value_of(pool.args[1]).dim() == 2
    biased = named(conv, "input weight bias").get("bias") is not None
    if not (pool.target is torch.adaptive_avg_pool1d or (product and not biased)) or not is_signal(
        pool.args[0]
    ):
        return
    try:
        dense(conv)
    except Outside:
        return
    x, *rest = pool.args
    before, after = value_of(x), value_of(conv)
    same = after.dtype == before.dtype and (OUTSIDE in conv.meta) == (OUTSIDE in x.meta)
    if after.shape[1] < before.shape[1] and same:
        with graph.inserting_before(conv):
            first = graph.call_function(conv.target, (x, *conv.args[1:]), conv.kwargs)
            first.meta.update(conv.meta)
            first.meta["example_value"] = before.new_empty((*after.shape[:2], before.shape[2]))
        _call_instead(graph, conv, pool.target, (first, *rest), pool.kwargs)
        graph.erase_node(pool)


def _fold_norm(graph: Graph, norm: Any) -> None:
    """Let a convolution compute the BatchNorm after it, in eval mode."""
    if norm.target is not F.batch_norm:
        return
    given = named(norm, "input running_mean running_var weight bias training momentum eps")
    conv, eps = given["input"], given.get("eps", 1e-5)
    vectors = [given.get(name) for name in ("weight", "bias", "running_mean", "running_var")]
    names = _FOLDED.get(conv.target)
    if names is None or len(conv.users) > 1 or given.get("training", False) or vectors[2] is None:
        return
    if not conv.args or value_of(conv).dim() != 3:  # BatchNorm reads (C, L) as N = C cases
        return
    of_conv = named(conv, names)
    weights, conv_bias = of_conv["weight"], of_conv.get("bias")
    tensors = [value_of(x) for x in (weights, conv_bias, *vectors) if x is not None]
    like = value_of(conv)  # in bfloat16, under autocast, vectors and weights have other types
    same = all((x.dtype, x.device) == (like.dtype, like.device) for x in tensors)
    # Where outputs are fewer than weights, it is faster to normalise the outputs.
    few = isinstance(like.numel(), int) and like.numel() < value_of(weights).numel()
    if of_conv.get("relu") or not same or few or OUTSIDE in norm.meta:
        return
    kernels = of_conv["geometry"][1] if "geometry" in of_conv else 0
    arguments = weights, conv_bias, of_conv.get("crow_indices"), kernels, *vectors, eps
    with graph.inserting_before(norm):
        folded = graph.call_function(OPS.lanes_fold.default, arguments)
        parts = [graph.call_function(operator.getitem, (folded, i)) for i in range(2)]
        for i, shaped in enumerate((weights, vectors[2])):
            parts[i].meta["example_value"] = value_of(shaped)
            if like.dtype in (torch.bfloat16, torch.float16):  # folded in float32
                parts[i].meta["example_value"] = value_of(shaped).float()
                parts[i] = graph.call_method("to", (parts[i], like.dtype))
                parts[i].meta["example_value"] = value_of(shaped)
    kwargs = {k: v for k, v in conv.kwargs.items() if k not in ("weight", "bias")}
    _call_instead(graph, norm, conv.target, (conv.args[0], *parts, *conv.args[3:]), kwargs)
    graph.erase_node(conv)


def _relu_after_conv(graph: Graph, relu: Any) -> None:
    """Compute ReLU where a sparse convolution stores its output."""
    conv = _only_reader_of(relu) if _is_relu(relu) else None
    if conv is not None and conv.target is _CONV and not any(conv.args[_GEOMETRY + 1 :]):
        conv.args = (*conv.args[: _GEOMETRY + 1], True)
        _replace(graph, relu, conv)


def join_in_lanes(graph: Graph) -> None:
    """Join operations of a graph after it was lowered."""
    for rewrite in (_relu_after, _add_before_relu, _norm_of_parts, _add_after_pointwise):
        for node in list(graph.nodes):
            rewrite(graph, node)


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
                if OUTSIDE in node.meta:
                    continue  # its weight is in float32
                rule(node)
                given = named(node, "input weight")
                op, arguments = OPS.prelu.default, (given["input"], given["weight"], 1)
            else:
                continue
        except Outside:
            continue
        _call_instead(graph, node, op, arguments)


def _relu_after(graph: Graph, relu: Any) -> None:
    """Compute ReLU where BatchNorm stores its output."""
    before: Any = _only_reader_of(relu) if _is_relu(relu) else None
    norm = _norm_behind(before)
    if norm is not None:
        norm.update_arg(_RELU, True)
        _replace(graph, relu, before)


def _add_before_relu(graph: Graph, relu: Any) -> None:
    """Compute ``relu(norm(x) + y)`` in one operation."""
    add: Any = _only_reader_of(relu) if _is_relu(relu) else None
    for output, other in _terms(add):
        norm = _norm_behind(output)
        if norm is None or norm.args[_RELU] or len(output.users) > 1:
            continue
        # The norm moves down to the addition, past what may read the statistics that it updates.
        if any(isinstance(x, Node) and len(x.users) > 1 for x in norm.args[_STATISTICS]):
            continue
        arguments = list(norm.args)
        arguments[_ADDED], arguments[_RELU] = other, True
        with graph.inserting_before(add):  # by then the other term has been computed
            again = graph.call_function(_NORM, tuple(arguments))
        _call_instead(graph, relu, operator.getitem, (again, 0))
        for node in (add, output, norm):
            graph.erase_node(node)
        return


def _add_after_pointwise(graph: Graph, add: Any) -> None:
    """Compute ``conv(x) + y`` in one operation, if the convolution is a 1x1."""
    for output, other in _terms(add):
        if output.target is not _POINTWISE or len(output.args) > 5 or len(output.users) > 1:
            continue
        _call_instead(graph, add, _POINTWISE, (*output.args, other))
        graph.erase_node(output)
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
    if output is None or output.target is not operator.getitem or output.args[1] != 0:
        return None
    norm = output.args[0]
    return norm if norm.target is _NORM else None
