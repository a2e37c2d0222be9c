"""The portable GPU kernels, in Triton. Imported only when they are to run: Triton is an extra.

The three computations have the signatures of those in ``sparseconv.ops.calls``, and ``schemas``
registers ``launch`` as what their ops run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from triton.runtime.jit import JITFunction

from sparseconv.ops import gpu_plans
from sparseconv.ops.triton import kernels

if TYPE_CHECKING:
    from sparseconv.core.geometry import Geometry
    from sparseconv.core.pattern import KernelCSR

# Triton decides when it decorates: with TRITON_INTERPRET=1 the kernels run on the CPU, slowly.
INTERPRETED = not isinstance(kernels.correlate, JITFunction)

_fprop = torch.ops.sparseconv.triton_fprop.default
_dgrad = torch.ops.sparseconv.triton_dgrad.default
_wgrad = torch.ops.sparseconv.triton_wgrad.default


def fprop(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    pattern: KernelCSR,
    geometry: Geometry,
    relu: bool = False,
) -> Tensor:
    """``(N, C_in, L_in) -> (N, C_out, L_out)``; with ``relu`` negative outputs become 0."""
    rows = gpu_plans.triton_fprop(pattern, geometry, x.device)
    y: Tensor = _fprop(x, values, bias, *rows, geometry.numbers, relu)
    return y


def dgrad(
    grad: Tensor, values: Tensor, pattern: KernelCSR, geometry: Geometry, input_length: int
) -> Tensor:
    """``(N, C_out, L_out) -> (N, C_in, L_in)``: the gradient of the input."""
    transposed = gpu_plans.triton_dgrad(pattern, geometry, grad.device)
    g: Tensor = _dgrad(grad, values, *transposed, geometry.numbers, input_length)
    return g


def wgrad(grad: Tensor, x: Tensor, pattern: KernelCSR, geometry: Geometry) -> Tensor:
    """``(nnz,)``: the gradient of the active weights, in CSR order."""
    blocks = gpu_plans.triton_wgrad(pattern, x.device)
    entries = gpu_plans.triton_fprop(pattern, geometry, x.device).entries
    g: Tensor = _wgrad(grad, x, blocks, entries, geometry.numbers)
    return g
