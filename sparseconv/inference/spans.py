"""Define links for inference, which compute adjacent modules together, with folded weights."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparseconv.functional.chain import Pointwise
from sparseconv.functional.conv import sparse_conv1d_resolved
from sparseconv.inference.folding import Weights, fold
from sparseconv.nn.conv import SparseConv1d
from sparseconv.nn.links import (
    CONV,
    NORM,
    POOL,
    RELU,
    SPARSE,
    Link,
    PointwiseLink,
    SparseLink,
    Table,
    is_pointwise,
    weight_and_bias,
)
from sparseconv.nn.pooling import new_averaging_matrix


class FoldedLink(Link):
    """Hold a convolution and its neighbours, possibly including a BatchNorm1d to fold."""

    def __init__(self, modules: Sequence[Any]) -> None:
        super().__init__(modules)
        self.norm = next((module for module in modules if isinstance(module, NORMS)), None)
        # The state of the tensors that were folded, the tensors, and the result (None: not usable).
        self._folded: tuple[list[Any], list[Any], Weights | None] | None = None

    def one_by_one(self, x: Tensor) -> Tensor:
        """Compute with the folded weights if possible; otherwise, call the modules."""
        weights = None if self.is_watched() else self.weights_for(x)
        y = None if weights is None else self.compute(x, *weights)
        return super().one_by_one(x) if y is None else y

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
        """Compute with the folded weights, or return None if the modules must be called."""
        raise NotImplementedError

    def weights_for(self, x: Any) -> Weights | None:
        """Return the weights for this input, or None if the modules must be called."""
        norm = self.norm
        # BatchNorm reads an unbatched (C, L) as N = C cases of L channels.
        if (
            type(x) not in (Tensor, nn.Parameter)
            or x.dim() != 3
            or x.layout is not torch.strided
            or (x.requires_grad and torch.is_grad_enabled())
            or (norm is not None and norm.training)
        ):
            return None
        try:
            return self.weights()
        except RuntimeError:  # inference tensors and others do not count writes
            return None

    def weights(self) -> Weights | None:
        """Return the folded weights, recomputed if one of the tensors has changed."""
        conv, norm = self.conv, self.norm
        own = conv._parameters.values()
        if norm is None:
            return None if _any_trained(own) else weight_and_bias(conv)
        tensors = [*own, *norm._parameters.values(), *norm._buffers.values()]
        if _any_trained(tensors):
            self._folded = None
            return None
        key: list[Any] = [norm.eps, *map(_state, tensors)]
        if isinstance(conv, SparseConv1d):
            key.append(conv.pattern)
        else:  # in which order the weight is read from its memory
            key += [tensor.stride() for tensor in own if tensor is not None]
        folded = self._folded
        if folded is None or folded[0] != key:
            self._folded = None
            with torch.inference_mode(False), torch.no_grad():
                # Keep them, so that no other tensor gets their ids and addresses.
                kept = [(tensor, tensor.data) for tensor in tensors if tensor is not None]
                folded = key, kept, fold(conv, norm)
            self._folded = folded  # in one assignment, because other threads may read it
        return folded[2]


def _state(tensor: Tensor | None) -> tuple[int, int, int] | None:
    """Identify a tensor and its content; ``.data = ...`` changes the address, not the version."""
    return None if tensor is None else (id(tensor), tensor._version, tensor.data_ptr())


def _any_trained(tensors: Any) -> bool:
    """Return whether an optimizer may write to a tensor: fused optimizers do not count writes."""
    return any(isinstance(tensor, Tensor) and tensor.requires_grad for tensor in tensors)


class FoldedSparseConv(FoldedLink, SparseLink):
    """Hold a ``SparseConv1d``, optionally with a BatchNorm1d and a ReLU."""

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        conv, geometry = self.conv, self.conv._geometry()
        how = geometry, conv.backend, self.relu, conv._pattern.block
        crow, col = conv._indices()
        return sparse_conv1d_resolved(x, weight, crow, col, bias, *how)


class FoldedConv(FoldedLink, PointwiseLink):
    """Hold an ``nn.Conv1d`` and a BatchNorm1d."""

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y: Tensor = self.conv._conv_forward(x, weight, bias)
        return y


class PointwiseThenMean(FoldedLink, PointwiseLink):
    """Hold a 1x1 ``nn.Conv1d`` and a global average after it.

    An adaptive average may come before the convolution, and a BatchNorm1d after it. A 1x1
    convolution applies the same map at every position, so it can be computed after the mean. In a
    chain, it comes first if it reduces the number of channels.
    """

    ends_chain = True

    def fits(self) -> bool:
        return self._bins is not None

    @property
    def _bins(self) -> int | None:
        """Return the first average's output size (1 if absent), or None if they cannot merge."""
        first, last = self.modules[0], self.modules[-1]
        if not is_pointwise(self.conv) or _pooled_size(last) != 1:
            return None
        return 1 if first is self.conv else _pooled_size(first)

    def stage(self, x: Tensor) -> Pointwise | None:
        stage = None if self._bins is None else super().stage(x)
        fewer = stage is not None and stage.weight.shape[0] < stage.weight.shape[1]
        return stage if fewer else None

    def finish(self, y: Tensor) -> Tensor:
        bins = self._bins
        assert bins is not None
        return (y @ _mean_of_bins(y.shape[2], bins, y.dtype, y.device)).unsqueeze(-1)

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
        bins = self._bins
        _, channels, length = x.shape
        if not (
            bins is not None
            and weight.shape[1:] == (channels, 1)
            and weight.dtype == x.dtype
            and weight.dtype in (torch.float32, torch.float64)
            and length > 0
        ):
            return None
        mean = x @ _mean_of_bins(length, bins, x.dtype, x.device)
        return F.linear(mean, weight[:, :, 0], bias).unsqueeze(-1)


def _pooled_size(pool: Any) -> int | None:
    size = pool.output_size
    size = size[0] if isinstance(size, tuple) and len(size) == 1 else size
    return size if isinstance(size, int) and size > 0 else None


@functools.lru_cache(maxsize=256)
def _mean_of_bins(length: int, bins: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return each sample's weight in the mean over ``bins`` adaptive averages, ``(length,)``."""
    with torch.inference_mode(False), torch.no_grad():
        matrix = new_averaging_matrix(length, torch.float64, torch.device("cpu"), bins)
        return matrix.mean(1).to(device, dtype)


# In eval mode SyncBatchNorm computes the same.
NORMS = (*NORM, nn.SyncBatchNorm)
FOLDED: Table = (
    ((POOL, CONV, NORMS, POOL), PointwiseThenMean),
    ((POOL, CONV, POOL), PointwiseThenMean),
    ((CONV, NORMS, POOL), PointwiseThenMean),
    ((CONV, POOL), PointwiseThenMean),
    ((SPARSE, NORMS, RELU), FoldedSparseConv),
    ((SPARSE, NORMS), FoldedSparseConv),
    ((SPARSE, RELU), FoldedSparseConv),
    ((SPARSE,), FoldedSparseConv),
    ((CONV, NORMS), FoldedConv),
    ((CONV,), PointwiseLink),
)
