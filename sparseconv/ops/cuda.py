"""What the ops run for CUDA tensors: the CUDA kernels, with the plans of the index tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sparseconv.core.geometry import Geometry
from sparseconv.ops import gpu_plans
from sparseconv.ops.padding import folds_padding

_OPS = torch.ops.sparseconv


def fprop(
    input: Tensor,
    values: Tensor,
    bias: Tensor | None,
    crow_indices: Tensor,
    col_indices: Tensor,
    geometry: Sequence[int],
    relu: bool = False,
) -> Tensor:
    plan = gpu_plans.cuda_fprop(crow_indices, col_indices, Geometry.from_numbers(geometry))
    y: Tensor = _OPS.cuda_fprop(input, values, bias, *plan, geometry, relu)
    return y


@folds_padding
def dgrad(
    grad_output: Tensor,
    values: Tensor,
    crow_indices: Tensor,
    col_indices: Tensor,
    geometry: Sequence[int],
    input_length: int,
) -> Tensor:
    plan = gpu_plans.cuda_dgrad(crow_indices, col_indices, Geometry.from_numbers(geometry))
    g: Tensor = _OPS.cuda_dgrad(grad_output, values, *plan, geometry, input_length)
    return g


def wgrad(
    grad_output: Tensor,
    input: Tensor,
    crow_indices: Tensor,
    col_indices: Tensor,
    geometry: Sequence[int],
) -> Tensor:
    plan = gpu_plans.cuda_fprop(crow_indices, col_indices, Geometry.from_numbers(geometry))
    g: Tensor = _OPS.cuda_wgrad(grad_output, input, *plan, geometry)
    return g
