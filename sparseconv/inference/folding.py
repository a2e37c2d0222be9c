"""Neighbours in a Sequential computed in one go, while nobody can tell.

The modules stay what and where they are. What is made of their weights is kept beside them, and
made anew whenever a weight is another one or was written to.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparseconv.core.pattern import KernelCSR
from sparseconv.functional.conv import sparse_conv1d_resolved
from sparseconv.functional.fused import conv_conv1x1, mixing_pays
from sparseconv.nn.conv import SparseConv1d
from sparseconv.nn.hooks import has_code_of_its_own
from sparseconv.nn.pooling import ShortAvgPool1d
from sparseconv.ops.backends import resolve_backend

Convolution = SparseConv1d | nn.Conv1d
Weights = tuple[Tensor, Tensor | None]


def split(modules: Sequence[nn.Module]) -> list[list[nn.Module] | Merged]:
    """Cut a sequence into what can be merged and what stands between.

    Example:
        >>> conv, norm, relu = SparseConv1d(2, 3, 5), nn.BatchNorm1d(3), nn.ReLU()
        >>> [type(part).__name__ for part in split([relu, conv, norm, relu, relu])]
        ['list', 'MergedSparseConv', 'list']
    """
    parts: list[list[nn.Module] | Merged] = []
    i = 0
    while i < len(modules):
        merged = _merged_from(modules, i)
        if merged is not None:
            parts.append(merged)
            i += len(merged.modules)
            continue
        if parts and isinstance(parts[-1], list):
            parts[-1].append(modules[i])
        else:
            parts.append([modules[i]])
        i += 1
    return parts


def _merged_from(modules: Sequence[nn.Module], start: int) -> Merged | None:
    pool = modules[start] if _pooled_size(modules[start]) is not None else None
    at = start + (pool is not None)
    conv, norm, after = ([*modules[at : at + 3], None, None, None])[:3]
    if not _is_convolution(conv):
        return None
    if not (isinstance(norm, nn.BatchNorm1d) and _is_foldable(norm, conv)):
        norm, after = None, norm
    if isinstance(conv, nn.Conv1d) and _is_pointwise(conv) and _pooled_size(after) == 1:
        return MergedMean([*modules[start : at + 2 + (norm is not None)]], conv, norm, pool)
    if pool is not None:
        return None
    if isinstance(conv, SparseConv1d) and type(after) is nn.ReLU:
        return MergedSparseConv([*modules[at : at + 2 + (norm is not None)]], conv, norm, relu=True)
    if norm is None:
        return None
    if isinstance(conv, SparseConv1d):
        return MergedSparseConv([conv, norm], conv, norm, relu=False)
    return MergedConv([conv, norm], conv, norm)


def _is_convolution(module: nn.Module | None) -> TypeGuard[Convolution]:
    return type(module) in (SparseConv1d, nn.Conv1d)


def _is_foldable(norm: nn.BatchNorm1d, conv: Convolution) -> bool:
    return (
        type(norm) is nn.BatchNorm1d
        and norm.running_mean is not None
        and norm.running_var is not None
        and norm.num_batches_tracked is not None  # counts the updates of the two others
        and norm.num_features == conv.out_channels
    )


def _is_pointwise(conv: nn.Conv1d) -> bool:
    return (
        conv.groups == 1
        and conv.kernel_size == conv.stride == (1,)
        and conv.padding in ((0,), "same", "valid")
    )


def _pooled_size(module: nn.Module | None) -> int | None:
    if type(module) not in (nn.AdaptiveAvgPool1d, ShortAvgPool1d):
        return None
    size = module.output_size  # type: ignore[union-attr]
    size = size[0] if isinstance(size, tuple) and len(size) == 1 else size
    return size if isinstance(size, int) and size > 0 else None


# A tensor as it was: in-place writes count its version up, ``.data = ...`` gives it other memory.
# The last one holds the memory, so that nothing else gets the address.
_Source = tuple[Tensor | None, int, int, Tensor | None]


def _source(tensor: Tensor | None) -> _Source:
    if tensor is None:
        return None, 0, 0, None
    return tensor, tensor._version, tensor.data_ptr(), tensor.data


class _Folded(NamedTuple):
    """Weights with a BatchNorm folded in, and all that they were made of."""

    sources: list[_Source]
    eps: float
    form: KernelCSR | tuple[int, ...] | None  # the pattern, or the strides of a dense weight
    weights: Weights | None  # None: not to be folded

    def is_current(
        self,
        tensors: tuple[Tensor | None, ...],
        eps: float,
        form: KernelCSR | tuple[int, ...] | None,
    ) -> bool:
        if (
            eps != self.eps
            or (form is not self.form and form != self.form)
            or len(tensors) != len(self.sources)
        ):
            return False
        for tensor, (source, version, address, _) in zip(tensors, self.sources, strict=False):
            if tensor is not source or (
                tensor is not None
                and (
                    tensor._version != version
                    or tensor.requires_grad
                    or tensor.data_ptr() != address
                )
            ):
                return False
        return True


class Merged:
    """What all merged neighbours share: whether and with which weights they run."""

    def __init__(
        self, modules: list[nn.Module], conv: Convolution, norm: nn.BatchNorm1d | None
    ) -> None:
        self.modules, self.conv, self.norm = modules, conv, norm
        self._kinds = list(map(type, modules))
        self._folded: _Folded | None = None

    def run(self, x: Tensor) -> Tensor | None:
        """Compute what the modules compute, or None where they have to do it themselves."""
        weights = self._ready(x)
        return None if weights is None else self._compute(x, *weights)

    def _ready(self, x: Tensor) -> Weights | None:
        norm = self.norm
        # BatchNorm takes an unbatched (C, L) for N = C cases of L channels.
        if (
            type(x) is not Tensor
            or x.dim() != 3
            or x.layout is not torch.strided
            or (x.requires_grad and torch.is_grad_enabled())
            or list(map(type, self.modules)) != self._kinds
            or any(map(has_code_of_its_own, self.modules))
            or (norm is not None and norm.training)
        ):
            return None
        try:
            return self._weights()
        except RuntimeError:  # inference tensors, and others that do not count what is written
            return None

    def _compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
        raise NotImplementedError

    def _weights(self) -> Weights | None:
        conv, norm = self.conv, self.norm
        own = conv._parameters.values()
        if norm is None:
            return None if _any_trained((*own,)) else _weight_and_bias(conv)
        tensors = (*own, *norm._parameters.values(), *norm._buffers.values())
        form: KernelCSR | tuple[int, ...] | None
        if isinstance(conv, SparseConv1d):
            form = conv.pattern
        else:
            weight = conv._parameters.get("weight")
            form = None if weight is None else weight.stride()
        folded = self._folded
        if folded is None or not folded.is_current(tensors, norm.eps, form):
            self._folded = None
            if _any_trained(tensors):
                return None
            with torch.inference_mode(False), torch.no_grad():
                sources = list(map(_source, tensors))  # before they are read: some may change
                folded = _Folded(sources, norm.eps, form, _fold(conv, norm))
            self._folded = folded  # as a whole, for other threads may be here too
        return folded.weights


def _any_trained(tensors: tuple[Tensor | None, ...]) -> bool:
    """Whether an optimizer may write into them: torch's fused ones do it without counting."""
    return any(tensor is not None and tensor.requires_grad for tensor in tensors)


class MergedSparseConv(Merged):
    """A ``SparseConv1d``, perhaps a BatchNorm1d, perhaps a ReLU."""

    def __init__(
        self,
        modules: list[nn.Module],
        conv: SparseConv1d,
        norm: nn.BatchNorm1d | None,
        *,
        relu: bool,
    ) -> None:
        super().__init__(modules, conv, norm)
        self._relu = relu

    def run_with(self, pointwise: nn.Conv1d, x: Tensor) -> Tensor | None:
        """The same and the 1x1 convolution behind it, or None where ``run`` is to be tried."""
        weight, offsets = pointwise._parameters.get("weight"), pointwise._parameters.get("bias")
        if (
            weight is None
            or has_code_of_its_own(pointwise)
            or not _is_pointwise(pointwise)
            or (torch.is_grad_enabled() and _any_trained((weight, offsets)))
        ):
            return None
        weights = self._ready(x)
        conv = self.conv
        assert isinstance(conv, SparseConv1d)
        if weights is None or resolve_backend(conv.backend, x.device) != "cpp":
            return None
        values, bias = weights
        if not mixing_pays(x, values, bias, conv.pattern, weight, offsets):
            return None
        return conv_conv1x1(
            x, values, bias, conv.pattern, conv._geometry(), weight, offsets, relu=self._relu
        )

    def _compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        conv = self.conv
        assert isinstance(conv, SparseConv1d)
        geometry = conv._geometry()
        return sparse_conv1d_resolved(
            x, weight, conv.pattern, bias, geometry, conv.backend, self._relu
        )


class MergedConv(Merged):
    """An ``nn.Conv1d`` and a BatchNorm1d."""

    def _compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        conv = self.conv
        assert isinstance(conv, nn.Conv1d)
        y: Tensor = conv._conv_forward(x, weight, bias)
        return y


class MergedMean(Merged):
    """Perhaps adaptive averages, a 1x1 ``nn.Conv1d``, perhaps a BatchNorm1d, a global average.

    A 1x1 convolution is the same map at every position: only the mean has to pass it.
    """

    def __init__(
        self,
        modules: list[nn.Module],
        conv: nn.Conv1d,
        norm: nn.BatchNorm1d | None,
        pool: nn.Module | None,
    ) -> None:
        super().__init__(modules, conv, norm)
        self._pool = pool

    def _compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
        conv = self.conv
        assert isinstance(conv, nn.Conv1d)
        bins = 1 if self._pool is None else _pooled_size(self._pool)
        _, channels, length = x.shape
        if not (
            _is_pointwise(conv)
            and bins is not None
            and _pooled_size(self.modules[-1]) == 1
            and weight.shape[1:] == (channels, 1)
            and weight.dtype == x.dtype
            and weight.dtype in (torch.float32, torch.float64)
            and length > 0
        ):
            return None
        mean = x @ _mean_of_bins(length, bins, x.dtype, x.device)
        return F.linear(mean, weight[:, :, 0], bias).unsqueeze(-1)


@functools.lru_cache(maxsize=256)
def _mean_of_bins(length: int, bins: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``(length,)``: what each sample counts in the mean over ``bins`` adaptive averages."""
    with torch.inference_mode(False), torch.no_grad():
        weights = torch.zeros(length, dtype=torch.float64, device="cpu")
        for i in range(bins):
            first, end = i * length // bins, -((-(i + 1) * length) // bins)
            weights[first:end] += 1 / (bins * (end - first))
        return weights.to(device, dtype)


def _weight_and_bias(conv: Convolution) -> Weights | None:
    weight = conv._parameters.get("values" if isinstance(conv, SparseConv1d) else "weight")
    return None if weight is None else (weight, conv._parameters.get("bias"))


def _fold(conv: Convolution, norm: nn.BatchNorm1d) -> Weights | None:
    """Weight and bias that compute ``norm(conv(x))``; None where that cannot be said for sure."""
    own = _weight_and_bias(conv)
    mean, var = norm._buffers.get("running_mean"), norm._buffers.get("running_var")
    counter = norm._buffers.get("num_batches_tracked")
    if own is None or mean is None or var is None or counter is None:
        return None
    weight, bias = own
    gamma, beta = norm._parameters.get("weight"), norm._parameters.get("bias")
    per_channel = [t for t in (mean, var, gamma, beta, bias) if t is not None]
    if not all(
        type(t) in (Tensor, nn.Parameter) and (t.dtype, t.device) == (weight.dtype, weight.device)
        for t in (weight, *per_channel)
    ) or any(t.shape != (conv.out_channels,) for t in per_channel):
        return None
    # In float64, so that each new weight and bias is rounded once.
    scale = (var.double() + norm.eps).rsqrt()
    if gamma is not None:
        scale *= gamma.double()
    shift = -mean.double() * scale
    if bias is not None:
        shift += bias.double() * scale
    if beta is not None:
        shift += beta.double()
    if isinstance(conv, SparseConv1d):
        if weight.shape != (conv.pattern.nnz,):
            return None
        of_row = conv.pattern.crow_indices[:: conv.pattern.shape[1]].long().diff()
        scale = scale.repeat_interleave(of_row.to(scale.device))
    elif weight.dim() != 3 or weight.shape[0] != conv.out_channels:
        return None
    else:
        scale = scale[:, None, None]
    weight = (weight.double() * scale).to(weight.dtype)
    shift = shift.to(weight.dtype)
    return (weight, shift) if weight.isfinite().all() and shift.isfinite().all() else None
