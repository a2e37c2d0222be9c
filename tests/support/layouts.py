"""Tensor layouts that a kernel must accept: the same numbers, stored differently."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Tensors of the same shape in every memory layout that torch can express. Some layouts repeat
# elements, so each is compared with its own contiguous copy.


def _padded_copy(x: Tensor, dim: int, before: int, after: int) -> Tensor:
    size = list(x.shape)
    size[dim] += before + after
    buffer = x.new_full(size, float("nan"))
    view = buffer.narrow(dim, before, x.shape[dim])
    return view.copy_(x)


def _strided_copy(x: Tensor, dim: int, step: int) -> Tensor:
    size = list(x.shape)
    size[dim] *= step
    buffer = x.new_full(size, float("nan"))
    index = [slice(None)] * x.dim()
    index[dim] = slice(None, None, step)
    return buffer[tuple(index)].copy_(x)


def _permuted_copy(x: Tensor, *order: int) -> Tensor:
    back = [order.index(d) for d in range(x.dim())]
    return x.permute(order).contiguous().permute(back)


def _offset_copy(x: Tensor) -> Tensor:
    return x.new_empty(x.numel() + 1)[1:].view(x.shape).copy_(x)


def _windows(x: Tensor) -> Tensor:
    """Overlap neighbours: every index steps through memory by one element."""
    return x.new_tensor(range(sum(x.shape) + 1)).as_strided(x.shape, (1,) * x.dim())


def _imaginary(x: Tensor) -> Tensor:
    """Make a view with torch's negative bit, which torch itself sets: the memory holds ``-x``."""
    if x.dtype not in (torch.float32, torch.float64):
        return _strided_copy(x, -1, 2)
    return torch.complex(torch.zeros_like(x), -x).conj().imag


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x.clone(),
    "offset": _offset_copy,
    "transposed": lambda x: _permuted_copy(x, *range(x.dim() - 2), *range(x.dim())[:-3:-1]),
    "reversed_dims": lambda x: _permuted_copy(x, *range(x.dim())[::-1]),
    "batch_last": lambda x: _permuted_copy(x, *range(1, x.dim()), 0),
    "sliced_last": lambda x: _padded_copy(x, -1, 3, 2),
    "sliced_first": lambda x: _padded_copy(x, 0, 1, 1),
    "sliced_middle": lambda x: _padded_copy(x, x.dim() // 2, 2, 1),
    "every_second": lambda x: _strided_copy(x, -1, 2),
    "every_third_first": lambda x: _strided_copy(x, 0, 3),
    "expanded_first": lambda x: x[:1].clone().expand_as(x),
    "expanded_last": lambda x: x[..., :1].clone().expand_as(x),
    "overlapping": _windows,
    "imaginary": _imaginary,
}
