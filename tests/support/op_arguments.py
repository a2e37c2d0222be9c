"""Correct argument lists of the raw ops."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from sparseconv import KernelCSR
from sparseconv.core.geometry import Geometry
from sparseconv.ops.backends import extension
from sparseconv.ops.lanes import OPS

GEOMETRIES = [
    Geometry.of((4, 3, 5), 1, (0, 0), 1, 1, "zeros"),
    Geometry.of((4, 3, 5), 1, (2, 2), 1, 2, "zeros"),
    Geometry.of((4, 3, 5), 3, (4, 1), 2, 1, "replicate"),
    Geometry.of((6, 1, 1), 2, (0, 0), 1, 3, "zeros"),
    Geometry.of((2, 3, 4), 1, (3, 0), 1, 1, "circular"),
    Geometry.of((2, 3, 4), 1, (3, 2), 1, 1, "reflect"),
]


def op_calls(
    tensors: Iterable[Any], pattern: KernelCSR, geometry: Geometry, length: int
) -> dict[str, tuple[Any, ...]]:
    """The arguments of every op for an input, values, a bias and a gradient of the output."""
    x, values, bias, grad = tensors
    context = pattern.crow_indices, pattern.col_indices, list(geometry)
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


def lane_dtypes() -> list[torch.dtype]:
    return [torch.float32, torch.float64, *[torch.bfloat16] * extension.has_block_kernels()]


def lane_arguments(dtype: torch.dtype, n: int = 3, length: int = 21) -> dict[str, tuple[Any, ...]]:
    """A correct argument list for every op on tensors in lanes."""
    torch.manual_seed(0)
    inputs, outputs, block = (32, 33, 16) if dtype == torch.bfloat16 else (3, 4, 1)
    geometry = Geometry.of((outputs, inputs, 5), 1, (3, 1), 1, 1, "zeros")
    pattern = KernelCSR.random(geometry.shape, outputs * inputs * 2, block=block)
    sizes = ((n, inputs, length), (n, outputs, length), (pattern.nnz,), (outputs, inputs, 1),
             *[(outputs,)] * 5)  # fmt: skip
    signal, output, values, weight, *vectors = (torch.randn(size, dtype=dtype) for size in sizes)
    bias, scale, shift, mean, var = (*vectors[:4], vectors[4].abs() + 0.1)
    if block > 1:
        mean, var = mean.float(), var.float()
    x, y, order = OPS.lanes_enter(signal), OPS.lanes_enter(output), (n, length)
    context = pattern.crow_indices, pattern.col_indices, list(geometry), *order
    pooled = signal[..., : length // 3 + 1]
    of_floats = {
        "lanes_activation": (y, "gated_tanh"),
        "lanes_activation_backward": (y[:2], y, "glu"),
        "prelu": (signal, bias[:1], 1),
        "prelu_backward": (signal, signal, bias[:1], 1),
    }
    return {
        **(of_floats if block == 1 else {}),
        "lanes_enter": (signal,),
        "lanes_leave": (x, inputs, *order),
        "lanes_conv": (x, values, bias, *context, True),
        "lanes_dgrad": (y, values, *context),
        "lanes_wgrad": (y, x, *context),
        "lanes_pointwise": (x, weight, bias, *order, y),
        "lanes_pointwise_dgrad": (y, weight, *order),
        "lanes_pointwise_wgrad": (y, x, weight, *order),
        "lanes_bias_grad": (y, outputs, *order),
        "lanes_norm": ([x, x[:1]], scale, shift, mean, var, y, True, 0.1, 1e-5, True, *order),
        "lanes_norm_backward": (y, [x, x[:1]], scale, shift, y, mean, var, True, True, *order),
        "lanes_fold": (values, bias, pattern.crow_indices, inputs, scale, shift, mean, var, 1e-5),
        "lanes_max_pool": (x, 3, 1, *order),
        "lanes_max_pool_backward": (x, x, 3, 1, *order),
        "lanes_resample": (x, -1, 1, 3, *order, 6),
        "lanes_mean": (x, inputs, *order),
        "lanes_dropout": (x, 0.3, 2**40 + 5),
        "max_pool": (signal, 4, 3, 2),
        "max_pool_backward": (pooled, signal, pooled, 4, 3, 2),
    }
