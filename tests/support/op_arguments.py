"""Correct argument lists of the raw ops."""

from __future__ import annotations

from typing import Any

import torch

import sparseconv as sc
from sparseconv.core.geometry import Geometry

GEOMETRIES = [
    Geometry((4, 3, 5), 1, (0, 0), 1, 1, "zeros"),
    Geometry((4, 3, 5), 1, (2, 2), 1, 2, "zeros"),
    Geometry((4, 3, 5), 3, (4, 1), 2, 1, "replicate"),
    Geometry((6, 1, 1), 2, (0, 0), 1, 3, "zeros"),
    Geometry((2, 3, 4), 1, (3, 0), 1, 1, "circular"),
    Geometry((2, 3, 4), 1, (3, 2), 1, 1, "reflect"),
]


def arguments(geometry: Geometry, dtype: torch.dtype = torch.float32) -> dict[str, tuple[Any, ...]]:
    """A correct argument list for every op."""
    torch.manual_seed(0)
    pattern = sc.KernelCSR.from_mask(torch.rand(geometry.shape) < 0.5)
    context = pattern.crow_indices, pattern.col_indices, list(geometry.numbers)
    values = torch.randn(pattern.nnz, dtype=dtype)
    x = torch.randn(2, geometry.shape[1] * geometry.groups, 20, dtype=dtype)
    grad = torch.randn(2, geometry.shape[0], geometry.output_length(20), dtype=dtype)
    bias = torch.randn(geometry.shape[0], dtype=dtype)
    return {
        "fprop": (x, values, bias, *context),
        "dgrad": (grad, values, *context, 20),
        "wgrad": (grad, x, *context),
        "bias_grad": (grad,),
    }
