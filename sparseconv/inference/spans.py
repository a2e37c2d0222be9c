"""Steps of inference: neighbours computed together, with weights folded when they change.

The modules stay what and where they are. What is computed of their weights is kept beside them.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparseconv.functional.conv import sparse_conv1d_resolved
from sparseconv.functional.fused import conv1d_pointwise, pointwise_epilogue_is_faster
from sparseconv.inference.folding import Weights, fold, weight_and_bias
from sparseconv.nn.block import (
    CONV,
    FUSED,
    NORM,
    RELU,
    Place,
    Plan,
    Pointwise,
    Step,
    Table,
    is_pointwise,
    plan,
)
from sparseconv.nn.conv import SparseConv1d
from sparseconv.nn.hooks import has_own_code
from sparseconv.nn.pooling import ShortAvgPool1d, new_averaging_matrix
from sparseconv.ops.backends import resolve_backend

SPARSE, POOL = (SparseConv1d,), (nn.AdaptiveAvgPool1d, ShortAvgPool1d)


class FusedSpan(Step):
    """A convolution, perhaps a BatchNorm1d that is folded into its weights, and what is around."""

    def __init__(self, places: Sequence[Place]) -> None:
        super().__init__(places)
        self.one_by_one = plan(places, FUSED)
        self.conv, self.norm = conv_and_norm(self.modules)
        # The state of the tensors that were folded, the tensors, and the result, if that is usable.
        self._folded: tuple[list[Any], list[Any], Weights | None] | None = None

    def run(self, x: Tensor) -> Tensor | None:
        weights = self.weights_for(x)
        return None if weights is None else self.compute(x, *weights)

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
        """The output of the modules, by the folded weights."""
        raise NotImplementedError

    def weights_for(self, x: Tensor) -> Weights | None:
        """The weights to compute with, or None where the modules have to run themselves."""
        norm = self.norm
        # BatchNorm reads an unbatched (C, L) as N = C cases of L channels.
        if (
            x.dim() != 3
            or x.layout is not torch.strided
            or (x.requires_grad and torch.is_grad_enabled())
            or self.is_watched()
            or (norm is not None and norm.training)
        ):
            return None
        try:
            return self._weights()
        except RuntimeError:  # inference tensors, and others that do not count what is written
            return None

    def _weights(self) -> Weights | None:
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
        else:  # the order in which the weight is read from its memory
            key += [tensor.stride() for tensor in own if tensor is not None]
        folded = self._folded
        if folded is None or folded[0] != key:
            self._folded = None
            with torch.inference_mode(False), torch.no_grad():
                # Kept, so that nothing else gets their identities and addresses.
                kept = [(tensor, tensor.data) for tensor in tensors if tensor is not None]
                folded = key, kept, fold(conv, norm)
            self._folded = folded  # as a whole, for other threads may be here too
        return folded[2]


def _state(tensor: Tensor | None) -> tuple[int, int, int] | None:
    """In-place writes increase the version, ``.data = ...`` gives a tensor other memory."""
    return None if tensor is None else (id(tensor), tensor._version, tensor.data_ptr())


def _any_trained(tensors: Any) -> bool:
    """Whether an optimizer may write into them: torch's fused ones do it without counting."""
    return any(tensor is not None and tensor.requires_grad for tensor in tensors)


def conv_and_norm(modules: Sequence[Any]) -> tuple[Any, nn.BatchNorm1d | None]:
    """The convolution of a span, and the BatchNorm1d after it, if there is one."""
    conv = next(module for module in modules if type(module) in (*SPARSE, *CONV))
    return conv, next((module for module in modules if type(module) in NORM), None)


class FoldedSparseConv(FusedSpan):
    """A ``SparseConv1d``, perhaps a BatchNorm1d, perhaps a ReLU."""

    def __init__(self, places: Sequence[Place]) -> None:
        super().__init__(places)
        self._relu = type(self.modules[-1]) in RELU

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        conv = self.conv
        geometry = conv._geometry()
        return sparse_conv1d_resolved(
            x, weight, conv.pattern, bias, geometry, conv.backend, self._relu
        )

    def run_with_pointwise(self, pointwise: nn.Conv1d, x: Tensor) -> Tensor | None:
        """Compute the same and the 1x1 convolution behind it, or None to compute it in two."""
        weight, offsets = pointwise._parameters.get("weight"), pointwise._parameters.get("bias")
        conv = self.conv
        if (
            weight is None
            or has_own_code(pointwise)
            or not is_pointwise(pointwise)
            or (torch.is_grad_enabled() and _any_trained((weight, offsets)))
            or (weights := self.weights_for(x)) is None
            or resolve_backend(conv.backend, x.device) != "cpp"
        ):
            return None
        values, bias = weights
        if not pointwise_epilogue_is_faster(x, values, bias, conv.pattern, weight, offsets):
            return None
        return conv1d_pointwise(
            x, values, bias, conv.pattern, conv._geometry(), weight, offsets, relu=self._relu
        )


class FoldedConv(FusedSpan):
    """An ``nn.Conv1d`` and a BatchNorm1d."""

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y: Tensor = self.conv._conv_forward(x, weight, bias)
        return y


class PointwiseThenMean(FusedSpan):
    """Perhaps adaptive averages, a 1x1 ``nn.Conv1d``, perhaps a BatchNorm1d, a global average.

    A 1x1 convolution is the same map at every position: only the mean has to pass it.
    """

    @classmethod
    def fits(cls, places: Sequence[Place]) -> bool:
        modules = [module for _, module in places]
        conv, _ = conv_and_norm(modules)
        return cls._bins(conv, modules) is not None

    @staticmethod
    def _bins(conv: nn.Conv1d, modules: Sequence[Any]) -> int | None:
        """How many averages come before the convolution; None where the two do not commute."""
        if not is_pointwise(conv) or _pooled_size(modules[-1]) != 1:
            return None
        return 1 if modules[0] is conv else _pooled_size(modules[0])

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
        bins = self._bins(self.conv, self.modules)
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
    """``(length,)``: what each sample counts in the mean over ``bins`` adaptive averages."""
    with torch.inference_mode(False), torch.no_grad():
        matrix = new_averaging_matrix(length, torch.float64, torch.device("cpu"), bins)
        return matrix.mean(1).to(device, dtype)


FOLDED: Table = (
    ((POOL, CONV, NORM, POOL), PointwiseThenMean),
    ((POOL, CONV, POOL), PointwiseThenMean),
    ((CONV, NORM, POOL), PointwiseThenMean),
    ((CONV, POOL), PointwiseThenMean),
    ((SPARSE, NORM, RELU), FoldedSparseConv),
    ((SPARSE, NORM), FoldedSparseConv),
    ((SPARSE, RELU), FoldedSparseConv),
    ((CONV, NORM), FoldedConv),
)


def plan_inference(places: Sequence[Place]) -> Plan:
    """Plan a sequence in eval mode: what folds, and of the rest what a ``Block`` fuses.

    Example:
        >>> conv, norm, relu = SparseConv1d(2, 3, 5), nn.BatchNorm1d(3), nn.ReLU()
        >>> modules = nn.Sequential(relu, conv, norm, relu, relu)
        >>> steps = plan_inference([(modules, module) for module in modules])
        >>> [type(step).__name__ for step in steps]
        ['ReLU', 'FoldedSparseConv', 'ReLU']
    """
    steps: Plan = []
    for step in plan(places, (*FOLDED, *FUSED)):
        before = steps[-1] if steps else None
        if isinstance(before, FoldedSparseConv) and type(step) in (*CONV, Pointwise):
            steps[-1] = WithPointwise(before, step)  # type: ignore[arg-type]
        else:
            steps.append(step)
    return steps


class WithPointwise:
    """A folded sparse convolution, and a 1x1 ``nn.Conv1d`` that its kernel may compute as well."""

    def __init__(self, span: FoldedSparseConv, pointwise: Pointwise | nn.Conv1d) -> None:
        self._span, self._pointwise = span, pointwise
        self._conv = pointwise.modules[0] if isinstance(pointwise, Pointwise) else pointwise

    def __call__(self, x: Tensor) -> Tensor:
        y = self._span.run_with_pointwise(self._conv, x)
        return self._pointwise(self._span(x)) if y is None else y
