"""Which modules, one or some in a row, may be a stage of a chain (``functional.chain``)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparseconv.functional.chain import Conv, NormRelu, Pointwise, Stage, keeps_order
from sparseconv.nn.conv import SparseConv1d
from sparseconv.nn.hooks import has_own_code
from sparseconv.nn.pooling import ShortAvgPool1d
from sparseconv.ops.backends import resolve_backend

_CPU = torch.device("cpu")
_fits_order = functools.lru_cache(maxsize=None)(keeps_order)


class Link:
    """Modules in a row that may be a stage of a chain."""

    ends = False  # whether something follows that is computed outside of the chain

    def __init__(self, modules: Sequence[Any]) -> None:
        self.modules: list[Any] = [*modules]

    @classmethod
    def fits(cls, modules: Sequence[Any]) -> bool:
        """Whether modules of the right types can be such a stage at all."""
        return True

    def channels(self, x: Tensor) -> tuple[int, int] | None:
        """Channels in and out if a stage computes what the modules do, for ``(N, C, L)`` like x."""
        raise NotImplementedError

    def stage(self) -> Stage:
        """The stage. Called once for each call of the modules, after ``channels``."""
        raise NotImplementedError

    def finish(self, y: Tensor) -> Tensor:
        """What is left to compute of the chain's output."""
        return y

    def is_ready(self, x: Any) -> bool:
        """Whether what the link is for holds now; a plan has an alternative for where not."""
        return True

    def one_by_one(self, x: Tensor) -> Tensor:
        """Call the modules."""
        for module in self.modules:
            x = module(x)
        return x

    def is_watched(self) -> bool:
        """Whether calling one of the modules does more than compute."""
        return any(map(has_own_code, self.modules))


def is_plain(x: Tensor, *tensors: Any) -> bool:
    """Whether these are CPU tensors of the dtype of x, as far as they exist."""
    return all(
        tensor is None
        or (
            type(tensor) in (Tensor, nn.Parameter)
            and tensor.dtype is x.dtype
            and tensor.device == _CPU
            and tensor.layout == torch.strided
            and not tensor.is_neg()
        )
        for tensor in tensors
    )


class SparseLink(Link):
    """A ``SparseConv1d``, perhaps with a ReLU behind it."""

    def weights(self) -> tuple[Any, Any] | None:
        """Values and bias; None where the modules have to compute."""
        held = self.modules[0]._parameters
        return (held["values"], held.get("bias")) if "values" in held else None

    def channels(self, x: Tensor) -> tuple[int, int] | None:
        conv = self.modules[0]
        if self.is_watched() or not _fits_order(conv._geometry()):
            return None
        if resolve_backend(conv.backend, x.device) != "cpp":
            return None
        weights = self.weights()
        if weights is None or not is_plain(x, *weights):
            return None
        values, bias = weights
        if values.shape != (conv.pattern.nnz,) or (
            bias is not None and bias.shape != (conv.out_channels,)
        ):
            return None
        return conv.in_channels, conv.out_channels

    def stage(self) -> Conv:
        conv, weights = self.modules[0], self.weights()
        assert weights is not None
        relu = type(self.modules[-1]) is nn.ReLU
        return Conv(*weights, conv.pattern, conv._geometry(), relu)


class PointwiseLink(Link):
    """A 1x1 ``nn.Conv1d`` without bias."""

    def channels(self, x: Tensor) -> tuple[int, int] | None:
        conv = self.modules[0]
        weight = conv._parameters.get("weight")
        if (
            self.is_watched()
            or not is_pointwise(conv)
            or conv.bias is not None
            or weight is None
            or not is_plain(x, weight)
            or weight.shape != (conv.out_channels, conv.in_channels, 1)
        ):
            return None
        return conv.in_channels, conv.out_channels

    def stage(self) -> Pointwise:
        return Pointwise(self.modules[0].weight)


class PooledLink(PointwiseLink):
    """Adaptive averages and a 1x1 ``nn.Conv1d`` without bias to fewer channels.

    The two commute, and fewer channels are pooled.
    """

    ends = True

    def __init__(self, modules: Sequence[Any]) -> None:
        super().__init__(modules)
        self._both = self.modules
        self.modules = [self._both[1]]

    @classmethod
    def fits(cls, modules: Sequence[Any]) -> bool:
        return bool(modules[1].out_channels < modules[1].in_channels)

    def is_watched(self) -> bool:
        return any(map(has_own_code, self._both))

    def finish(self, y: Tensor) -> Tensor:
        pooled: Tensor = self._both[0](y)
        return pooled

    def one_by_one(self, x: Tensor) -> Tensor:
        for module in self._both:
            x = module(x)
        return x


class NormLink(Link):
    """An ``nn.BatchNorm1d`` and ``nn.ReLU``; in eval mode while nothing is recorded."""

    def channels(self, x: Tensor) -> tuple[int, int] | None:
        norm = self.modules[0]
        tensors = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
        if (
            self.is_watched()
            or not is_plain(x, *tensors)
            or not all(
                t is None or (t.is_contiguous() and t.shape == (norm.num_features,))
                for t in tensors
            )
        ):
            return None
        if norm.training:
            usable = x.shape[0] * x.shape[2] > 1
        else:
            usable = norm.running_mean is not None and not torch.is_grad_enabled()
        return (norm.num_features, norm.num_features) if usable else None

    def stage(self) -> NormRelu:
        norm = self.modules[0]
        tracked = norm.training and norm.track_running_stats
        momentum = 0.0 if norm.momentum is None else norm.momentum
        if tracked and norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
            if norm.momentum is None:  # the mean over all batches
                momentum = 1.0 / float(norm.num_batches_tracked)
        read = tracked or not norm.training
        mean, var = (norm.running_mean, norm.running_var) if read else (None, None)
        return NormRelu(norm.weight, norm.bias, mean, var, momentum, norm.eps, norm.training)


def is_pointwise(conv: nn.Conv1d) -> bool:
    """Whether the layer maps each position by itself, all alike."""
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
