"""How torch.utils.flop_counter counts the registered ops: by their active weights.

Imported when that module is (see ``sparseconv/__init__.py``).
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

# A multiply-add is two operations; each active weight meets every output of its row once. Every
# op knows the output of fprop or its gradient by shape, and nnz by that of the rows.


@register_flop_formula([torch.ops.sparseconv.fprop, torch.ops.sparseconv.triton_fprop])
def _flops_fprop(
    input_shape: Any,
    values_shape: Any,
    bias_shape: Any,
    crow_shape: Any,
    rows_shape: Any,
    *args: Any,
    out_shape: Any = None,
    **kwargs: Any,
) -> int:
    return int(2 * input_shape[0] * out_shape[2] * values_shape[0])


@register_flop_formula([torch.ops.sparseconv.dgrad, torch.ops.sparseconv.triton_dgrad])
def _flops_dgrad(grad_shape: Any, values_shape: Any, *args: Any, **kwargs: Any) -> int:
    return int(2 * grad_shape[0] * grad_shape[2] * values_shape[0])


@register_flop_formula([torch.ops.sparseconv.wgrad, torch.ops.sparseconv.triton_wgrad])
def _flops_wgrad(
    grad_shape: Any, input_shape: Any, crow_shape: Any, rows_shape: Any, *args: Any, **kwargs: Any
) -> int:
    return int(2 * grad_shape[0] * grad_shape[2] * rows_shape[0])


@register_flop_formula(torch.ops.sparseconv.fprop_pointwise)
def _flops_fprop_pointwise(
    input_shape: Any, values_shape: Any, *args: Any, out_shape: Any = None, **kwargs: Any
) -> int:
    weight_shape = args[-2]
    macs = values_shape[0] + weight_shape[0] * weight_shape[1]
    return int(2 * input_shape[0] * out_shape[2] * macs)


@register_flop_formula(torch.ops.sparseconv.pointwise_fprop)
def _flops_pointwise_fprop(input_shape: Any, weight_shape: Any, *args: Any, **kwargs: Any) -> int:
    return int(2 * input_shape[0] * input_shape[2] * weight_shape[0] * weight_shape[1])


@register_flop_formula(torch.ops.sparseconv.pointwise_dgrad)
def _flops_pointwise_dgrad(grad_shape: Any, weight_shape: Any, *args: Any, **kwargs: Any) -> int:
    return int(2 * grad_shape[0] * grad_shape[2] * weight_shape[0] * weight_shape[1])


@register_flop_formula(torch.ops.sparseconv.pointwise_wgrad)
def _flops_pointwise_wgrad(grad_shape: Any, input_shape: Any, *args: Any, **kwargs: Any) -> int:
    return int(2 * grad_shape[0] * grad_shape[2] * grad_shape[1] * input_shape[1])
