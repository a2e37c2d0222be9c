"""Run a sequence of modules as the graph that the compiler makes of it, in eager mode.

In that graph, tensors stay in the kernels' own order from one layer to the next (``ops.lanes``).
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from sparseconv.compiler.backend import call_directly, lower
from sparseconv.compiler.steps import value_of
from sparseconv.nn.conv import SparseConv1d
from sparseconv.nn.modules import (
    all_modules_are_watched,
    has_own_code,
    own_parameters,
    runs_code_of,
)
from sparseconv.nn.pooling import POOLED, ShortAvgPool1d, averaging_matrix
from sparseconv.ops.backends import extension, resolve_backend
from sparseconv.ops.lanes import OPS
from sparseconv.ops.orders import fits_rows, in_rows, runs_eagerly

_PLAIN = (Tensor, nn.Parameter)
_CPU = torch.device("cpu")
_FPROP = OPS.fprop.default
_MOST_GRAPHS = 256  # that are kept


class _Call(NamedTuple):
    """What a module computes, ``function(x, *tensors, *rest)``.

    Attributes:
        counter: of batches, which is incremented.
        fits: whether block kernels can compute the pattern.
    """

    function: Any
    tensors: Sequence[Tensor | None] = ()
    rest: tuple[Any, ...] = ()
    counter: Tensor | None = None
    fits: bool = False


# Each returns None for what the graph cannot follow. They also get whether x will be in bfloat16.
def _sparse(conv: Any, rows: bool) -> _Call | None:
    own = own_parameters(conv, "values", "bias")
    if own is None or conv.dense_probe is not None or resolve_backend(conv.backend, _CPU) != "cpp":
        return None
    geometry = conv._geometry()
    fits = rows and conv.pattern.cached(fits_rows, geometry)
    return _Call(_FPROP, (*own, *conv._indices()), (geometry[:],), fits=fits)


def _conv(conv: Any, rows: bool) -> _Call | None:
    own = own_parameters(conv, "weight", "bias")
    pointwise = conv.kernel_size == conv.stride == (1,) and conv.groups == 1
    plain = own is not None and pointwise and conv.padding in ((0,), "same", "valid")
    return _Call(torch.conv1d, own) if plain else None


def _norm(norm: Any, rows: bool) -> _Call | None:
    own = own_parameters(norm, "weight", "bias")
    momentum, eps, buffers = norm.momentum, norm.eps, norm._buffers
    if own is None or not isinstance(momentum, float) or not isinstance(eps, float):
        return None
    mean, var = buffers.get("running_mean"), buffers.get("running_var")
    if mean is None or not norm.training:
        return _Call(F.batch_norm, (mean, var, *own), (mean is None, momentum, eps))
    if not norm.track_running_stats:
        mean = var = None
    counter = buffers.get("num_batches_tracked")
    return _Call(F.batch_norm, (mean, var, *own), (True, momentum, eps), counter)


def _average(pool: Any, rows: bool) -> _Call | None:
    size = pool.output_size
    return _Call(torch.adaptive_avg_pool1d, rest=(size,)) if isinstance(size, int) else None


_CALLS: dict[type[nn.Module], Callable[[Any, bool], _Call | None]] = {
    SparseConv1d: _sparse,
    nn.Conv1d: _conv,
    nn.BatchNorm1d: _norm,
    nn.ReLU: lambda relu, _: _Call(F.relu, rest=(relu.inplace,)),
    ShortAvgPool1d: lambda *_: _Call(averaging_matrix),
    nn.AdaptiveAvgPool1d: _average,
}


@functools.cache
def _call_of(kind: type[nn.Module]) -> Callable[[Any, bool], _Call | None]:
    """Return what says what the modules of a class compute."""
    fitting = (call for known, call in _CALLS.items() if runs_code_of(kind, known))
    return next(fitting, lambda *_: None)


def _compute(modules: list[nn.Module], x: Tensor) -> Tensor:
    """Compute what the modules compute, by graphs where this pays."""
    while modules:
        calls: list[_Call] = []
        if type(x) in _PLAIN and x.is_cpu:
            rows = in_rows(x)
            for module in modules:
                call = _call_of(type(module))(module, rows)  # type: ignore[arg-type]
                if call is None:
                    break
                calls.append(call)
        now, modules = modules[: len(calls) or 1], modules[len(calls) or 1 :]
        run = _graph_of(calls, x)
        if run is not None:
            x = run()
            continue
        for module in now:
            x = module(x)
    return x


# By what decides them: modes, the CPU's instructions, sizes, dtypes, and the calls.
_graphs: dict[tuple[Any, ...], Callable[..., Tensor] | None] = {}


def _graph_of(calls: list[_Call], x: Tensor) -> Callable[[], Tensor] | None:
    """Return the graph of the calls with its arguments, or None where it would gain nothing."""
    if len(calls) < 2 or all(call.function is not _FPROP for call in calls) or extension is None:
        return None
    if x.is_inference() and torch.is_grad_enabled():  # autograd could not save it
        return None
    key: list[Any] = [torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")]
    key += extension.has_fma(), extension.has_block_kernels(), x.shape, x.dtype
    tensors = [x]
    for call in calls:
        key += call.function, call.rest, call.fits
        for t in (*call.tensors, call.counter):
            if t is None:
                key.append(None)
            elif type(t) in _PLAIN and t.is_cpu:
                key.append((t.numel(), t.dtype))
                tensors.append(t)
            else:
                return None
    which = tuple(key)
    try:
        run = _graphs[which]
    except KeyError:
        if len(_graphs) >= _MOST_GRAPHS:
            _graphs.pop(next(iter(_graphs)), None)
        run = _graphs[which] = _made(calls, x)
    return None if run is None else functools.partial(run, *tensors)


def _made(calls: list[_Call], x: Tensor) -> Callable[..., Tensor] | None:
    """Make the graph of the calls, or return None if nothing in it is in the kernels' order."""
    graph = Graph()

    def given(tensor: Tensor | None) -> Node | None:
        if tensor is None:
            return None
        node = graph.placeholder(f"given_{len(graph.nodes)}")
        node.meta.update(real=tensor, example_value=tensor.detach().clone())
        return node

    def add(function: Any, *arguments: Any) -> Node:
        values = [value_of(a) if isinstance(a, Node) else a for a in arguments]
        method = isinstance(function, str)
        node = graph.create_node("call_method" if method else "call_function", function, arguments)
        compute = getattr(Tensor, function) if method else function
        node.meta["example_value"] = compute(*values)
        return node

    def cast(node: Any) -> Any:  # as SparseConv1d does; torch's functions do so themselves
        exact = node is None or value_of(node).dtype == torch.float64
        return node if exact else add("to", node, torch.bfloat16)

    y: Any = given(x)
    inputs = [list(map(given, (*call.tensors, call.counter))) for call in calls]
    try:
        with torch.no_grad():
            for (function, _, rest, *_), (*tensors, counter) in zip(calls, inputs, strict=True):
                if counter is not None:
                    add("add_", counter, 1)
                if function is averaging_matrix:
                    now = value_of(y)
                    if now.shape[-1] <= ShortAvgPool1d.LONGEST:
                        matrix = add(averaging_matrix, now.shape[-1], now.dtype, _CPU)
                        function, rest = operator.matmul, (matrix,)
                    else:
                        function, rest = torch.adaptive_avg_pool1d, (POOLED,)
                elif function is _FPROP and torch.is_autocast_enabled("cpu"):
                    y, *tensors[:2] = map(cast, (y, *tensors[:2]))
                y = add(function, y, *tensors, *rest)
    except (RuntimeError, TypeError, ValueError):
        return None  # the modules say what does not fit
    graph.output(y)
    graph, report = lower(graph)
    if not report.enters:
        return None
    call_directly(graph)
    for node in graph.nodes:
        node.meta.clear()  # or the tensors would live as long
    run: Callable[..., Tensor] = GraphModule(nn.Module(), graph).forward
    return run


def leaves(module: Any) -> list[Any]:
    """Return the modules that a Sequential runs, in order.

    An inner Sequential is replaced with its modules, unless calling it does more than run them.
    """
    found = []
    for inner in module._modules.values():
        kind = type(inner)
        only_runs_its_modules = (
            issubclass(kind, nn.Sequential)
            and kind.forward in (nn.Sequential.forward, Block.forward)
            and kind.__iter__ is nn.Sequential.__iter__
            and not has_own_code(inner)
        )
        found += leaves(inner) if only_runs_its_modules else [inner]
    return found


class Block(nn.Sequential):
    """Run like ``nn.Sequential``, but adjacent layers as ``torch.compile`` with our backend does.

    The layers are ``SparseConv1d``, 1x1 ``nn.Conv1d``, ``nn.BatchNorm1d`` with a fixed momentum,
    ``nn.ReLU`` and ``nn.AdaptiveAvgPool1d``; others are called. Results may differ by rounding from
    those of the separate modules. Each new combination of sizes, dtypes and modes needs a graph.
    Making it takes as long as another forward pass, and 10 to 20 ms; the last 256 are kept.

    If one of the modules has hooks or overridden code, all run one by one. So they do wherever
    something else than eager execution traces, transforms or observes them, as in torch.compile.

    Args:
        modules: as for ``nn.Sequential``.

    Example:
        >>> from collections import OrderedDict
        >>> from sparseconv import SparseConv1d
        >>> norm = nn.BatchNorm1d(3)
        >>> block = Block(OrderedDict(conv=SparseConv1d(2, 3, 5), norm=norm, relu=nn.ReLU()))
        >>> block(torch.zeros(4, 2, 9)).shape
        torch.Size([4, 3, 5])
    """

    def forward(self, input: Tensor) -> Tensor:
        """Run the modules in order."""
        y = self._together(leaves(self), input)
        return super().forward(input) if y is None else y  # type: ignore[no-untyped-call]

    def forward_after(self, first: nn.Sequential, input: Tensor) -> Tensor:
        """Compute ``self(first(input))``, together where possible."""
        own = has_own_code(first) or has_own_code(self)
        y = None if own else self._together(leaves(first) + leaves(self), input)
        return self(first(input)) if y is None else y

    def _together(self, modules: list[Any], x: Tensor) -> Tensor | None:
        if (
            not runs_eagerly()
            or all_modules_are_watched()
            or any(map(has_own_code, modules))
            or torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
        ):
            return None
        return _compute(modules, x)

    def __prepare_scriptable__(self) -> nn.Sequential:
        plain = nn.Sequential()
        plain.__dict__.update(self.__dict__)
        return plain
