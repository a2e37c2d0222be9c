"""Implement the ops for CUDA tensors: call the CUDA kernels with the plans of patterns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sparseconv.core.geometry import Geometry
from sparseconv.ops import gpu_plans
from sparseconv.ops.padding import folds_padding


def _planned(op: Any, make: Callable[..., gpu_plans.Masks], first: int) -> Callable[..., Tensor]:
    """Return a function that passes ``op`` a plan instead of the two index tensors at ``first``."""

    def launched(*args: Any) -> Tensor:
        crow, col, geometry, *rest = args[first:]
        plan = make(crow, col, Geometry.from_numbers(geometry))
        result: Tensor = op(*args[:first], *plan, geometry, *rest)
        return result

    return launched


_OPS = torch.ops.sparseconv
fprop = _planned(_OPS.cuda_fprop, gpu_plans.cuda_fprop, 3)
dgrad = folds_padding(_planned(_OPS.cuda_dgrad, gpu_plans.cuda_dgrad, 2))
wgrad = _planned(_OPS.cuda_wgrad, gpu_plans.cuda_fprop, 2)
