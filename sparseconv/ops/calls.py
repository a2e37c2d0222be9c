"""fprop, dgrad and wgrad of a pattern: the ops, called with plans that the pattern caches.

Where torch only computes, the CPU's layers go past them (csrc/autograd/conv.cpp).
"""

from __future__ import annotations

from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from sparseconv.core.geometry import Geometry
from sparseconv.core.pattern import KernelCSR
from sparseconv.ops import gpu_plans
from sparseconv.ops.backends import extension

# Looked up once: three attributes in a row are a tenth of a small call.
_fprop = torch.ops.sparseconv.fprop.default
_dgrad = torch.ops.sparseconv.dgrad.default
_wgrad = torch.ops.sparseconv.wgrad.default


class DgradPlan(NamedTuple):
    """The transposed pattern: per stride phase and input channel, entries over output channels."""

    pointers: Tensor
    rows: Tensor
    source: Tensor  # where each entry's weight stands in `values`


def _cpu_fprop(pattern: KernelCSR, stride: int, dilation: int) -> Tensor:
    geometry = Geometry(pattern.shape, stride, (0, 0), dilation, 1, "zeros")
    rows: Tensor = torch.ops.sparseconv.plan_fprop(
        pattern.crow_indices, pattern.col_indices, geometry.numbers
    )
    return rows


def _cpu_dgrad(pattern: KernelCSR, stride: int, dilation: int, groups: int) -> DgradPlan:
    geometry = Geometry(pattern.shape, stride, (0, 0), dilation, groups, "zeros")
    return DgradPlan(
        *torch.ops.sparseconv.plan_dgrad(
            pattern.crow_indices, pattern.col_indices, geometry.numbers
        )
    )


def _cpu_wgrad(pattern: KernelCSR, stride: int, dilation: int) -> tuple[Tensor, Tensor]:
    geometry = Geometry(pattern.shape, stride, (0, 0), dilation, 1, "zeros")
    rows, batches = torch.ops.sparseconv.plan_wgrad(
        pattern.crow_indices, pattern.col_indices, geometry.numbers
    )
    return rows, batches


# The patterns for which there are plans in C++, by where their pointers lie.
_planned: WeakValueDictionary[int, KernelCSR] = WeakValueDictionary()


def conv_plan(pattern: KernelCSR, geometry: Geometry) -> Any:
    """The plans of all three computations on the CPU, for C++ that calls no op."""
    return pattern.cached(_conv_plan, geometry)


def _conv_plan(pattern: KernelCSR, geometry: Geometry) -> Any:
    assert extension is not None
    _planned[pattern.crow_indices.data_ptr()] = pattern
    return extension.ConvPlan(pattern.crow_indices, pattern.col_indices, geometry.numbers)


class PlannedKernels:
    """fprop, dgrad and wgrad as a layer calls them where torch only computes: no op, no Python."""

    @staticmethod
    def fprop(
        x: Tensor, values: Tensor, bias: None, pattern: KernelCSR, geometry: Geometry
    ) -> Tensor:
        y: Tensor = conv_plan(pattern, geometry).fprop(x, values)
        return y

    @staticmethod
    def dgrad(
        grad: Tensor, values: Tensor, pattern: KernelCSR, geometry: Geometry, input_length: int
    ) -> Tensor:
        g: Tensor = conv_plan(pattern, geometry).dgrad(grad, values, input_length)
        return g

    @staticmethod
    def wgrad(grad: Tensor, x: Tensor, pattern: KernelCSR, geometry: Geometry) -> Tensor:
        g: Tensor = conv_plan(pattern, geometry).wgrad(grad, x)
        return g


def pattern_of(crow: Tensor, col: Tensor, geometry: Geometry) -> KernelCSR:
    """The pattern from whose arrays a plan was made; an equal one if it is gone."""
    pattern = _planned.get(crow.data_ptr())
    return KernelCSR(crow, col, geometry.shape) if pattern is None else pattern


def fprop_rows(pattern: KernelCSR, geometry: Geometry) -> Tensor:
    return pattern.cached(_cpu_fprop, geometry.stride, geometry.dilation)


def _fprop_plan(pattern: KernelCSR, geometry: Geometry, x: Tensor) -> tuple[Tensor, Tensor]:
    """What fprop reads of the pattern; on the CPU its pointers and the rows of its entries."""
    if not x.is_cuda:
        return pattern.crow_indices, fprop_rows(pattern, geometry)
    return gpu_plans.cuda_fprop(pattern, geometry, x.device)


def _wgrad_plan(
    pattern: KernelCSR, geometry: Geometry, x: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The same, and on the CPU the batches of weights that are summed at once."""
    if not x.is_cuda:
        plan = pattern.cached(_cpu_wgrad, geometry.stride, geometry.dilation)
        return pattern.crow_indices, *plan
    return *gpu_plans.cuda_fprop(pattern, geometry, x.device), None


def _dgrad_plan_for(
    pattern: KernelCSR, geometry: Geometry, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    if not grad.is_cuda:
        stride, dilation, groups = geometry.stride, geometry.dilation, geometry.groups
        return pattern.cached(_cpu_dgrad, stride, dilation, groups)
    rows, slots = gpu_plans.cuda_dgrad(pattern, geometry, grad.device)
    return rows, slots, slots


def fprop(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    pattern: KernelCSR,
    geometry: Geometry,
    relu: bool = False,
) -> Tensor:
    """``(N, C_in, L_in) -> (N, C_out, L_out)``; with ``relu`` negative outputs become 0."""
    crow, rows = _fprop_plan(pattern, geometry, x)
    y: Tensor = _fprop(x, values, bias, crow, rows, geometry.numbers, relu)
    return y


def dgrad(
    grad: Tensor, values: Tensor, pattern: KernelCSR, geometry: Geometry, input_length: int
) -> Tensor:
    """``(N, C_out, L_out) -> (N, C_in, L_in)``: the gradient of the input."""
    plan = _dgrad_plan_for(pattern, geometry, grad)
    g: Tensor = _dgrad(grad, values, *plan, geometry.numbers, input_length)
    return g


def wgrad(grad: Tensor, x: Tensor, pattern: KernelCSR, geometry: Geometry) -> Tensor:
    """``(nnz,)``: the gradient of the active weights, in CSR order."""
    crow, rows, batches = _wgrad_plan(pattern, geometry, x)
    g: Tensor = _wgrad(grad, x, crow, rows, geometry.numbers, batches)
    return g
