"""Compute adjacent modules of a sequence in the kernels' own order; results differ by rounding.

In this order (``ops.lanes``), a series is not contiguous: series, or pieces of them, are
interleaved in vectors of 64 bytes. A tensor enters it before the first of several layers and leaves
it after the last one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from sparseconv.nn.conv import SparseConv1d
from sparseconv.nn.modules import (
    all_modules_are_watched,
    computes_as,
    has_own_code,
    own_parameters,
)
from sparseconv.nn.pooling import ShortAvgPool1d
from sparseconv.ops.backends import extension, resolve_backend
from sparseconv.ops.orders import (
    fits_rows,
    in_rows,
    keeps_order,
    pointwise_fits_rows,
    runs_eagerly,
)

_PLAIN = (Tensor, nn.Parameter)
_CPU = torch.device("cpu")
_C: Any = extension  # its functions call the ops without torch's parser of arguments
_fits_order = functools.lru_cache(maxsize=None)(keeps_order)


class _Series(NamedTuple):
    """Describe the series that enter the order: N, L, the dtype, and whether they are in rows."""

    batch: int
    length: int
    dtype: torch.dtype
    rows: bool
    casts: bool  # to bfloat16

    def takes(self, *tensors: Any, mixed: bool = False) -> bool:
        """Return whether a layer can have these parameters, or None; ``mixed``: as BatchNorm."""
        others = _CASTABLE if self.casts or (mixed and self.rows) else ()
        for x in tensors:
            if x is None:
                continue
            if type(x) not in _PLAIN or not x.is_cpu:
                return False
            if x.dtype != self.dtype and x.dtype not in others:
                return False
        return True


_CASTABLE = (torch.float32, torch.bfloat16)
Run = Callable[[Tensor], Tensor]


@dataclass
class _Conv:
    """Hold the arguments of a sparse convolution, except its input."""

    arguments: tuple[Any, ...]
    relu: bool

    def __call__(self, x: Tensor) -> Tensor:
        return cast(Tensor, _C.lanes_conv(x, *self.arguments, self.relu))


# Each returns a function of a tensor in the order that computes the modules, or None. It gets the
# functions that come before, and may replace the last one.
Stage = Callable[[_Series, Sequence[Any], list[Run]], Run | None]


def _sparse(series: _Series, modules: Sequence[Any], before: list[Run]) -> Run | None:
    conv = modules[0]
    geometry = conv._geometry()
    own = own_parameters(conv, "values", "bias")
    if (
        own is None
        or not series.takes(*own)
        or conv.dense_probe is not None
        or not _fits_order(geometry)
        or resolve_backend(conv.backend, _CPU) != "cpp"
        or (series.rows and not conv.pattern.cached(fits_rows, geometry))
    ):
        return None
    arguments = *own, *conv._indices(), geometry, series.batch, series.length
    return _Conv(arguments, relu=len(modules) > 1)


def _pointwise(series: _Series, modules: Sequence[Any], before: list[Run]) -> Run | None:
    conv = modules[-1]
    own = own_parameters(conv, "weight", "bias")
    if (
        own is None
        or not series.takes(*own)
        or not _is_pointwise(conv)
        or (series.rows and not pointwise_fits_rows(*own[0].shape[:2]))
    ):
        return None
    return lambda x: _C.lanes_pointwise(x, *own, series.batch, series.length, None)


def _pooled(series: _Series, modules: Sequence[Any], before: list[Run]) -> Run | None:
    """Reduce the channels before the average: the two commute, and it then costs less."""
    conv = modules[1]
    return _pointwise(series, modules, before) if conv.out_channels < conv.in_channels else None


def _norm_relu(series: _Series, modules: Sequence[Any], before: list[Run]) -> Run | None:
    norm = modules[0]
    own = own_parameters(norm, "weight", "bias")
    mean, var, counter = (
        norm._buffers.get(name) for name in ("running_mean", "running_var", "num_batches_tracked")
    )
    if (
        own is None
        or not series.takes(*own, mean, var, mixed=True)
        or not isinstance(norm.eps, float)
        or not isinstance(norm.momentum, float | None)
        or series.batch * series.length == 1  # which torch refuses in training
    ):
        return None
    training, momentum = norm.training or mean is None, norm.momentum
    conv = before[-1] if before else None
    if (
        not (training or torch.is_grad_enabled())
        and isinstance(conv, _Conv)
        and not conv.relu
        # Else it is faster to normalise the outputs.
        and conv.arguments[0].numel() <= norm.num_features * series.batch * series.length
    ):
        *weights, crow, _, geometry = conv.arguments[:5]
        kernels = geometry[1]  # of each output channel
        folded = _C.lanes_fold(*weights, crow, kernels, *own, mean, var, norm.eps)
        before.pop()
        return _Conv((*folded, *conv.arguments[2:]), relu=True)
    tracks = norm.training and norm.track_running_stats and mean is not None
    statistics = (mean, var) if tracks or not training else (None, None)

    def run(x: Tensor) -> Tensor:
        factor = momentum
        if tracks and counter is not None:
            counter.add_(1)
            factor = 1 / float(counter) if momentum is None else momentum
        how = training, factor or 0.0, norm.eps, True, series.batch, series.length
        return cast(Tensor, _C.lanes_norm([x], *own, *statistics, None, *how)[0])

    return run


def _is_pointwise(conv: nn.Conv1d) -> bool:
    """Return whether the layer maps each position independently, in the same way."""
    return (
        conv.groups == 1
        and conv.kernel_size == conv.stride == (1,)
        and conv.padding in ((0,), "same", "valid")
    )


_SPARSE, _CONV, _NORM, _RELU = (SparseConv1d,), (nn.Conv1d,), (nn.BatchNorm1d,), (nn.ReLU,)
_STAGES: Sequence[tuple[Sequence[tuple[type[nn.Module], ...]], Stage]] = (
    ((_SPARSE, _RELU), _sparse),
    ((_SPARSE,), _sparse),
    ((_NORM, _RELU), _norm_relu),
    (((nn.AdaptiveAvgPool1d, ShortAvgPool1d), _CONV), _pooled),
    ((_CONV,), _pointwise),
)
# Consecutive modules, and the stage that may compute them.
Parts = list[tuple[list[Any], Stage | None]]


@dataclass
class _Plan:
    """Hold the parts of modules; as an attribute, a tuple of modules would keep them in place."""

    key: tuple[list[int], list[type]]  # identities and types of the modules
    parts: Parts


def _parts(modules: list[Any]) -> Parts:
    """Divide modules into parts: each fits the first possible stage, or has one module."""
    parts: Parts = []
    while modules:
        for kinds, stage in _STAGES:
            part = modules[: len(kinds)]
            if len(part) == len(kinds) and all(map(computes_as, part, kinds)):
                parts.append((part, stage))
                break
        else:
            parts.append((modules[:1], None))
        modules = modules[len(parts[-1][0]) :]
    return parts


def _compute(parts: Parts, x: Tensor) -> Tensor:
    """Compute what the modules compute, in the order where possible."""
    i = 0
    while i < len(parts):
        series = None if parts[i][1] is None else _series_of(x)
        chosen, runs = ([], []) if series is None else _stages(series, parts[i:], x)
        channels = _channels_after(chosen, x) if len(chosen) > 1 else None
        # Entering and leaving pay only for several stages, of which at least one is sparse.
        if series is None or channels is None or all(stage is not _sparse for _, stage in chosen):
            chosen = parts[i : i + 1]
            for module in chosen[0][0]:
                x = module(x)
        else:
            margin = 0
            if series.rows:
                convs = [modules[0] for modules, stage in chosen if stage is _sparse]
                margin = max(max(conv.resolved_padding) for conv in convs)
            y = _C.lanes_enter(x.to(series.dtype), margin)
            for run in runs:
                y = run(y)
            x = _C.lanes_leave(y, channels, series.batch, series.length)
            modules, stage = chosen[-1]
            x = modules[0](x) if stage is _pooled else x
        i += len(chosen)
    return x


def _stages(series: _Series, parts: Parts, x: Tensor) -> tuple[Parts, list[Run]]:
    """Return the first parts that can be computed in the order, and what computes them."""
    runs: list[Run] = []
    for used, (modules, stage) in enumerate(parts):
        # Under autocast torch normalises float32, which entering rows would round before.
        early = not runs and stage is _norm_relu and x.dtype != series.dtype
        run = None if stage is None or early else stage(series, modules, runs)
        if run is None:
            return parts[:used], runs
        runs.append(run)
        if stage is _pooled:
            return parts[: used + 1], runs
    return parts, runs


def _channels_after(parts: Parts, x: Tensor) -> int | None:
    """Return the number of channels after some stages, or None if the modules do not fit."""
    channels = x.shape[1]
    for modules, stage in parts:
        if stage is _norm_relu:
            now = after = modules[0].num_features
        else:
            conv = modules[-1] if stage is _pooled else modules[0]
            now, after = conv.in_channels, conv.out_channels
        if now != channels:
            return None
        channels = after
    return channels


def _series_of(x: Any) -> _Series | None:
    """Describe a tensor that can enter the order, or return None."""
    if (
        type(x) not in _PLAIN
        or x.dim() != 3
        or x.device != _CPU
        or x.layout != torch.strided
        or x.numel() == 0
        or extension is None
        or (x.is_inference() and torch.is_grad_enabled())  # autograd could not save it
    ):
        return None
    rows, casts = in_rows(x), torch.is_autocast_enabled("cpu")
    # Without the instruction, multiply-adds are emulated bit for bit, 30 to 100 times slower.
    lanes = x.dtype in (torch.float32, torch.float64) and not casts and extension.has_fma()
    if not (rows or lanes):
        return None
    return _Series(x.shape[0], x.shape[2], torch.bfloat16 if rows else x.dtype, rows, casts)


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
    """Run like ``nn.Sequential``, but compute sparse convolutions together with adjacent modules.

    The tensors between such layers stay in the kernels' memory layout. They can be a
    ``SparseConv1d`` that preserves the length, with or without ``nn.ReLU``; a 1x1 ``nn.Conv1d``;
    and an ``nn.BatchNorm1d`` followed by ``nn.ReLU``. Results may differ by rounding from those of
    the separate modules. This needs the C++ kernels, and float32 or float64 on a CPU with fused
    multiply-adds, or blocks of 16 channels in bfloat16 on a CPU with AMX or AVX-512 BF16.

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

    _planned: _Plan | None = None

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
        key = list(map(id, modules)), list(map(type, modules))
        planned = self._planned
        if planned is None or planned.key != key:
            # One assignment, because other threads may run this too.
            planned = self._planned = _Plan(key, _parts(modules))
        return _compute(planned.parts, x)

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()  # type: ignore[no-untyped-call]
        state.pop("_planned", None)
        return state

    def __prepare_scriptable__(self) -> nn.Sequential:
        plain = nn.Sequential()
        plain.__dict__.update(self.__getstate__())
        return plain
