"""Correct argument lists of the raw ops."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from sparseconv import KernelCSR
from sparseconv.core.geometry import Geometry

GEOMETRIES = [
    Geometry((4, 3, 5), 1, (0, 0), 1, 1, "zeros"),
    Geometry((4, 3, 5), 1, (2, 2), 1, 2, "zeros"),
    Geometry((4, 3, 5), 3, (4, 1), 2, 1, "replicate"),
    Geometry((6, 1, 1), 2, (0, 0), 1, 3, "zeros"),
    Geometry((2, 3, 4), 1, (3, 0), 1, 1, "circular"),
    Geometry((2, 3, 4), 1, (3, 2), 1, 1, "reflect"),
]


def op_calls(
    tensors: Iterable[Any], pattern: KernelCSR, geometry: Geometry, length: int
) -> dict[str, tuple[Any, ...]]:
    """The arguments of every op for an input, values, a bias and a gradient of the output."""
    x, values, bias, grad = tensors
    context = pattern.crow_indices, pattern.col_indices, list(geometry.numbers)
    return {
        "fprop": (x, values, bias, *context),
        "dgrad": (grad, values, *context, length),
        "wgrad": (grad, x, *context),
        "bias_grad": (grad,),
    }


def arguments(geometry: Geometry, dtype: torch.dtype = torch.float32) -> dict[str, tuple[Any, ...]]:
    """A correct argument list for every op."""
    torch.manual_seed(0)
    pattern = KernelCSR.from_mask(torch.rand(geometry.shape) < 0.5)
    sizes = ((2, geometry.shape[1] * geometry.groups, 20), (pattern.nnz,), geometry.shape[:1],
             (2, geometry.shape[0], geometry.output_length(20)))  # fmt: skip
    tensors = (torch.randn(size, dtype=dtype) for size in sizes)
    return op_calls(tensors, pattern, geometry, 20)
