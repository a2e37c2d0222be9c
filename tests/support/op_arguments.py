"""Correct argument lists of the raw ops, and every way in which one argument can be wrong."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import sparseconv as sc
from sparseconv.core.geometry import Geometry

MOST = 2**31 - 1
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
    crow, col, numbers = pattern.crow_indices, pattern.col_indices, list(geometry.numbers)
    values = torch.randn(pattern.nnz, dtype=dtype)
    x = torch.randn(2, geometry.shape[1] * geometry.groups, 20, dtype=dtype)
    grad = torch.randn(2, geometry.shape[0], geometry.output_length(20), dtype=dtype)
    bias = torch.randn(geometry.shape[0], dtype=dtype)
    return {
        "fprop": (x, values, bias, crow, col, numbers),
        "dgrad": (grad, values, crow, col, numbers, 20),
        "wgrad": (grad, x, crow, col, numbers),
        "bias_grad": (grad,),
    }


def with_argument(args: tuple[Any, ...], i: int, value: Any) -> tuple[Any, ...]:
    return (*args[:i], value, *args[i + 1 :])


def wrong_tensors(value: Tensor) -> list[Any]:
    wrong: list[Any] = [None, 3, "x", [1.0], value.to("meta"), value.to_sparse()]
    wrong += [
        value.to(dtype) for dtype in (torch.int64, torch.complex64, torch.bool, torch.float8_e5m2)
    ]
    wrong += [value.unsqueeze(0), value.unsqueeze(-1), value.flatten()[:0], value.new_zeros(())]
    for dim, size in enumerate(value.shape):
        wrong += [value.narrow(dim, 0, size - 1)] if size else []
        wrong += [torch.cat([value, value.narrow(dim, 0, 1)], dim)] if size else []
        wrong += [value.narrow(dim, 0, 0)]
    if value.dim():
        wrong.append(value[0])
    if value.is_floating_point():
        return [*wrong, value.double(), value.bfloat16(), value.half()]
    spread = torch.full((2 * len(value),), MOST, dtype=value.dtype)
    wrong.append(spread[::2].copy_(value))
    wrong += [value.flip(0), value + 1, value - 1, value.double(), value.to(torch.int16)]
    for bad in (-1, 1, value.numel(), MOST, -MOST - 1):
        for at in {0, value.numel() // 2, value.numel() - 1} if value.numel() else ():
            poisoned = value.clone()
            poisoned[at] = bad
            wrong.append(poisoned)
    return wrong


def without_memory(value: Any) -> list[Tensor]:
    """Tensors like this one with nothing to read, which torch can neither copy nor print."""
    if not isinstance(value, Tensor):
        return []
    cut, short = value.clone(), value.clone()
    cut.untyped_storage().resize_(0)
    short.untyped_storage().resize_(max(0, value.nbytes - 1))
    zeros = torch._efficientzerotensor(value.shape, dtype=value.dtype)
    with FakeTensorMode() as mode:
        return [cut, short, zeros, mode.from_tensor(value)]


def wrong_values(value: Any) -> list[Any]:
    """Every way in which one argument can be wrong."""
    if isinstance(value, Tensor):
        return wrong_tensors(value)
    if isinstance(value, list):
        wrong: list[Any] = [[], value[:-1], [*value, 1], None, ["x"], 1.5]
        for at, number in enumerate(value):
            for bad in (number - 1, number + 1, -1, 0, MOST, 2**40, -(2**62)):
                wrong.append([*value[:at], bad, *value[at + 1 :]])
        return wrong
    if isinstance(value, str):
        return ["", "same", "zero", None, 3, "zeros\0", "reflect", "circular"]
    if isinstance(value, bool):
        return [None, "x", [True]]
    if isinstance(value, float):
        return [None, "x", float("nan"), float("inf"), -1.0, 1e300]
    return [value - 1, value + 1, -1, 0, MOST, 2**31, 2**62, -(2**62), 2**63 - 1, 2**64, None, 1.5]
