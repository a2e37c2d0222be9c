"""Bring graphs into fewer forms before rules read them: each function rewrites one of them."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch.fx import Graph, Node

from sparseconv.compiler.rules import is_signal, named, value_of
from sparseconv.core.geometry import Geometry
from sparseconv.ops.lanes import OPS

_CONV = OPS.fprop.default
_GEOMETRY = 5  # among its arguments
_PADS = (F.pad, torch._C._nn.pad)
_SPLITS = (torch.chunk, torch.split, "chunk", "split")


def simplify(graph: Graph) -> None:
    """Apply all rewrites to a functional graph."""
    for rewrite in (_drop_cast, _parts_of_split, _narrow, _crop_after_conv, _pad_before_conv):
        for node in list(graph.nodes):
            rewrite(graph, node)


def _replace(graph: Graph, node: Node, by: Node) -> None:
    node.replace_all_uses_with(by)
    graph.erase_node(node)


def _drop_cast(graph: Graph, node: Any) -> None:
    """Erase a cast to the same dtype, which autocast leaves before each layer."""
    if (node.op, node.target) == ("call_method", "to") and not node.kwargs:
        x, *to = node.args
        if to == [getattr(value_of(x), "dtype", None)]:
            _replace(graph, node, x)


def _as_narrow(graph: Graph, node: Node, x: Node, dim: int, start: int) -> None:
    with graph.inserting_before(node):
        part = graph.call_function(torch.narrow, (x, dim, start, int(value_of(node).shape[dim])))
    part.meta.update(node.meta)
    _replace(graph, node, part)


def _parts_of_split(graph: Graph, node: Any) -> None:
    """Turn the parts of ``chunk`` and ``split`` over channels into ``narrow``."""
    if node.target not in _SPLITS or not is_signal(node.args[0]):
        return
    given = named(node, "input sizes dim")
    parts = [user for user in node.users if user.target is operator.getitem]
    if given.get("dim", 0) not in (1, -2) or len(parts) < len(node.users):
        return
    widths = [int(part.shape[1]) for part in value_of(node)]
    for part in parts:
        i = part.args[1] % len(widths)
        _as_narrow(graph, part, node.args[0], 1, sum(widths[:i]))
    graph.erase_node(node)


def _narrow(graph: Graph, node: Any) -> None:
    """Turn slicing of one dimension into ``narrow``."""
    if node.target == "narrow" and is_signal(node) and node.args[1] > 0 and not node.kwargs:
        _as_narrow(graph, node, *node.args[:3])
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


def _crop_after_conv(graph: Graph, node: Any) -> None:
    """Let a convolution pad less instead of computing samples that are cut off."""
    if node.target is not torch.narrow or node.args[1] not in (2, -1):
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
        padding = ends[0] + own.padding[0], ends[1] + own.padding[1]
        whole = own._replace(padding=padding)
    elif mode == "replicate" and own.padding == (0, 0):
        whole = own._replace(padding=tuple(ends), padding_mode="replicate")
    else:
        return
    conv.update_arg(_GEOMETRY, list(whole.numbers))
    conv.update_arg(0, x)
    if not pad.users:
        graph.erase_node(pad)
