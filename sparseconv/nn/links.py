"""Turn one or more consecutive modules into a stage of a chain (``functional.chain``)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparseconv.functional.chain import (
    Conv,
    NormRelu,
    Pointwise,
    Stage,
    fits_rows,
    in_rows,
    keeps_order,
)
from sparseconv.nn.conv import SparseConv1d
from sparseconv.nn.modules import has_own_code, own_parameters
from sparseconv.nn.pooling import ShortAvgPool1d
from sparseconv.ops.backends import resolve_backend

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
_fits_order = functools.lru_cache(maxsize=None)(keeps_order)


class Link:
    """Hold consecutive modules that may be a stage of a chain."""

    ends_chain = False  # whether `finish` computes more, after the chain

    def __init__(self, modules: Sequence[Any]) -> None:
        self.modules: list[Any] = [*modules]
        self.conv: Any = next((m for m in modules if isinstance(m, (*SPARSE, *CONV))), None)
        self.relu = isinstance(modules[-1], RELU)

    def fits(self) -> bool:
        """Return whether these modules can ever be a stage."""
        return True

    def stage(self, x: Tensor) -> Stage | None:
        """Return a stage that, in a chain for ``x``, computes what the modules compute, or None."""
        return None

    def may_begin(self, x: Tensor) -> bool:
        """Return whether a chain for ``x`` may begin here."""
        return True

    def weights_for(self, x: Tensor) -> Any:
        """Return the weight and bias of the convolution, or None if the modules must be called."""
        return weight_and_bias(self.conv)

    def finish(self, y: Tensor) -> Tensor:
        """Compute the rest of the link from the chain's output."""
        return y

    def one_by_one(self, x: Tensor) -> Tensor:
        for module in self.modules:
            x = module(x)
        return x

    def is_watched(self) -> bool:
        """Return whether calling one of the modules does more than compute its output."""
        return any(map(has_own_code, self.modules))


class SparseLink(Link):
    """Hold a ``SparseConv1d``, with or without ReLU."""

    def stage(self, x: Tensor) -> Conv | None:
        conv = self.conv
        geometry = conv._geometry()
        if (
            self.is_watched()
            or conv.dense_probe is not None
            or not _fits_order(geometry)
            or resolve_backend(conv.backend, x.device) != "cpp"
        ):
            return None
        weights = self.weights_for(x)
        if weights is None:
            return None
        values, bias = weights
        pattern = conv.pattern
        if in_rows(x) and not pattern.cached(fits_rows, geometry):
            return None
        return Conv(values, bias, pattern, geometry, self.relu)


class PointwiseLink(Link):
    """Hold a 1x1 ``nn.Conv1d``."""

    def stage(self, x: Tensor) -> Pointwise | None:
        if self.is_watched() or not is_pointwise(self.conv):
            return None
        weights = self.weights_for(x)
        return None if weights is None else Pointwise(*weights)


class PooledLink(PointwiseLink):
    """Hold adaptive average pooling and a 1x1 ``nn.Conv1d`` that reduces channels; swap the two."""

    # The two commute, and averages of fewer channels cost less.
    ends_chain = True

    def fits(self) -> bool:
        return bool(self.conv.out_channels < self.conv.in_channels)

    def finish(self, y: Tensor) -> Tensor:
        pooled: Tensor = self.modules[0](y)
        return pooled


class NormLink(Link):
    """Hold an ``nn.BatchNorm1d`` and ``nn.ReLU``."""

    def may_begin(self, x: Tensor) -> bool:
        # Otherwise the chain would round what torch normalises in float32.
        return x.dtype == torch.bfloat16 or not in_rows(x)

    def stage(self, x: Tensor) -> NormRelu | None:
        norm = self.modules[0]
        training, eps, momentum = bool(norm.training), norm.eps, norm.momentum
        own = own_parameters(norm, "weight", "bias")
        if (
            own is None
            or self.is_watched()
            or not isinstance(eps, float)
            or not (momentum is None or isinstance(momentum, float))
        ):
            return None
        try:
            kept = [norm._buffers[name] for name in _STATISTICS]
        except KeyError:
            return None
        mean, var, counter = kept
        # In eval mode the stage has no gradients.
        if not training and (mean is None or torch.is_grad_enabled()):
            return None
        if (mean is None) != (var is None) or not (
            counter is None or (counter.dtype is torch.int64 and counter.numel() == 1)
        ):
            return None
        if training and not norm.track_running_stats:
            mean = var = counter = None
        weight, bias = own
        return NormRelu(weight, bias, mean, var, momentum, eps, training, counter)


def weight_and_bias(conv: SparseConv1d | nn.Conv1d) -> Any:
    weight = "values" if isinstance(conv, SparseConv1d) else "weight"
    return own_parameters(conv, weight, "bias")


def is_pointwise(conv: nn.Conv1d) -> bool:
    """Return whether the layer maps each position independently, in the same way."""
    return (
        conv.groups == 1
        and conv.kernel_size == conv.stride == (1,)
        and conv.padding in ((0,), "same", "valid")
    )


Table = Sequence[tuple[tuple[tuple[type[nn.Module], ...], ...], type[Link]]]
SPARSE, CONV, NORM, RELU = (SparseConv1d,), (nn.Conv1d,), (nn.BatchNorm1d,), (nn.ReLU,)
POOL = (nn.AdaptiveAvgPool1d, ShortAvgPool1d)
LINKS: Table = (
    ((SPARSE, RELU), SparseLink),
    ((SPARSE,), SparseLink),
    ((NORM, RELU), NormLink),
    ((POOL, CONV), PooledLink),
    ((CONV,), PointwiseLink),
)
