"""What rules for operations share: see ``rules``."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.fx import Graph, Node

from sparseconv.compiler.costs import cost
from sparseconv.ops.backends import extension

OUTSIDE = "outside"  # in the meta of signals: their dtype outside of lanes, if they are cast


class Outside(Exception):  # noqa: N818
    """The reason why an operation has no rule that fits."""


class Lanes(Protocol):
    """What a rule builds with: see ``lowering.Lowering``."""

    def call(self, target: Any, *args: Any, **kwargs: Any) -> Node: ...
    def of(self, signal: Node) -> Node: ...
    def sizes(self, signal: Node) -> tuple[Any, Any]: ...
    def samples(self, signal: Node) -> Node: ...


class Step(NamedTuple):
    """What one node becomes.

    Attributes:
        signals: the arguments that are read in lanes.
        build: adds the nodes that compute the result.
        gain: nanoseconds saved for each element of the output, without and with gradients.
        in_lanes: whether the result is in lanes; else it is what the node gave.
        length: of the result, where it changes.
        margin: padding that is read before or after a series.
        exact: whether no samples may be stored before a signal's first one; see ``Lowering``.
    """

    signals: tuple[Node, ...]
    build: Callable[[Lanes], Node]
    gain: tuple[float, float]
    in_lanes: bool = True
    length: int | None = None
    margin: int = 0
    exact: bool = True


def of_op(x: Any, what: str, op: Any, *rest: Any, sized: bool = False, **options: Any) -> Step:
    """Return the step of an op on one signal, whose other arguments are ``rest``.

    ``what`` is its name in ``costs``. The numbers of series and samples follow if it is ``sized``.
    """

    def build(lanes: Lanes) -> Node:
        sizes = lanes.sizes(x) if sized else ()
        return lanes.call(op, lanes.of(x), *rest, *sizes)

    return Step((x,), build, cost(what, in_rows(x)), **options)


def require(condition: Any, why: str) -> None:
    if not condition:
        raise Outside(why)


def value_of(node: Any) -> Any:
    """Return the fake tensor, or whatever else Dynamo recorded for a node."""
    return node.meta.get("example_value") if isinstance(node, Node) else None


def is_series(node: Any) -> bool:
    """Return whether a node is a batch of series on a CPU, in any floating-point dtype."""
    value = value_of(node)
    return (
        isinstance(value, Tensor)
        and value.dim() == 3
        and value.is_floating_point()
        and value.device.type == "cpu"
    )


def is_signal(node: Any) -> bool:
    """Return whether a node is a batch of series that fits lanes; one sample is not a series."""
    value = value_of(node)
    if extension is None:
        return False
    # Without the instruction, multiply-adds are emulated bit for bit, 30 to 100 times slower.
    lanes = (torch.float32, torch.float64) * extension.has_fma()
    return (
        is_series(node)
        and value.shape[2] != 1
        and 0 not in value.shape
        and value.dtype in (*lanes, *(torch.bfloat16,) * extension.has_block_kernels())
        and value.layout is torch.strided
    )


def require_signal(x: Any) -> None:
    require(is_signal(x), "it is not on a batch of float32, float64 or bfloat16 series on a CPU")


def is_permuted(value: Tensor) -> bool:
    """Return whether a tensor's dimensions are stored in another order, which torch often keeps."""
    return not value.is_contiguous() and any(a < b for a, b in pairwise(value.stride()))


def switches_gradients(graph: Graph) -> bool:
    """Return whether parts run without gradients, so that not all operations can be joined."""
    return any(node.target is torch._C._set_grad_enabled for node in graph.nodes)


def one(value: Any) -> Any:
    return value[0] if isinstance(value, tuple | list) and len(value) == 1 else value


def named(node: Node, names: str) -> dict[str, Any]:
    """Return a call's arguments by their names, as far as they were passed."""
    return dict(zip(names.split(), node.args, strict=False)) | dict(node.kwargs)


def signal_of(node: Node, names: str) -> tuple[Node, dict[str, Any]]:
    """Return the signal that a call has first, and its arguments by their names."""
    given = named(node, names)
    x = given[names.split()[0]]
    require_signal(x)
    computed = any(isinstance(value_of(n), int | torch.SymInt) for n in node.all_input_nodes)
    require(not computed, "its options are computed from sizes")
    return x, given


def in_rows(node: Any) -> bool:
    return bool(value_of(node).dtype == torch.bfloat16)


def mark_float32(graph: Graph) -> None:
    """Let rules see bfloat16 series as float32, to which they are cast where they enter lanes."""
    for node in graph.nodes:
        value = value_of(node)
        if is_series(node) and value.dtype == torch.bfloat16:
            node.meta.update({OUTSIDE: value.dtype, "example_value": value.float()})


def require_same_dtype(node: Node, *signals: Any, weights: tuple[Any, ...] = ()) -> None:
    dtype = value_of(node).dtype
    # In rows they may be float32: autocast casts weights, and BatchNorm has its own in float32.
    of_weights = (dtype, torch.float32) if in_rows(node) else (dtype,)
    same = all(value_of(x).dtype == dtype for x in signals) and all(
        value_of(x).dtype in of_weights and OUTSIDE not in x.meta for x in weights if x is not None
    )
    require(same, "its tensors have several dtypes")
