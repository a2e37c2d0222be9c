"""Layers one after the other on a tensor in the kernels' own order, by the ops alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparseconv.core.geometry import Geometry
from sparseconv.core.pattern import KernelCSR
from sparseconv.ops.lanes import OPS


class Conv(NamedTuple):
    """A sparse convolution that keeps the length, with or without ReLU."""

    values: Tensor
    bias: Tensor | None
    pattern: KernelCSR
    geometry: Geometry
    relu: bool = False

    def run(self, x: Tensor, n: int, length: int) -> Tensor:
        arrays = self.pattern.crow_indices, self.pattern.col_indices, self.geometry
        return OPS.lanes_conv(x, self.values, self.bias, *arrays, n, length, self.relu)


class Pointwise(NamedTuple):
    """A dense convolution with one tap; its weight is ``(C_out, C_in, 1)``."""

    weight: Tensor
    bias: Tensor | None = None

    def run(self, x: Tensor, n: int, length: int) -> Tensor:
        return OPS.lanes_pointwise(x, self.weight, self.bias, n, length)


class NormRelu(NamedTuple):
    """BatchNorm and ReLU."""

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    momentum: float
    eps: float
    training: bool = True

    def run(self, x: Tensor, n: int, length: int) -> Tensor:
        how = self.training, self.momentum, self.eps, True, n, length
        return OPS.lanes_norm([x], *self[:4], None, *how)[0]


Stage = Conv | Pointwise | NormRelu


def run_ordered(x: Tensor, stages: Sequence[Stage]) -> Tensor:
    """Enter, compute all stages, and leave: ``(N, C, L)`` in and out."""
    n, channels, length = x.shape
    margin = max((max(s.geometry.padding) for s in stages if isinstance(s, Conv)), default=0)
    y = OPS.lanes_enter(x, margin)
    for stage in stages:
        y = stage.run(y, n, length)
        if isinstance(stage, Conv):
            channels = stage.geometry.shape[0]
        elif isinstance(stage, Pointwise):
            channels = stage.weight.shape[0]
    return OPS.lanes_leave(y, channels, n, length)


def results(
    x: Tensor, stages: Sequence[Stage], grad: Tensor | None = None, run: Any = run_ordered
) -> list[Tensor]:
    """Return the output, and gradients of the input and of all parameters."""
    x = x.detach()
    tensors = [x, *(t for stage in stages for t in stage[:2])]
    leaves = [t.requires_grad_() for t in tensors if t is not None]
    y = run(x, stages)
    if grad is None:
        grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
    grads = torch.autograd.grad(y, leaves, grad.to(y.dtype), materialize_grads=True)
    return [y.detach(), *grads]


def check_equal(of_torch: Tensor, ours: Tensor, leaves: Sequence[Tensor], case: object) -> None:
    """Compare two results and, for a gradient of whole numbers, their gradients exactly."""
    torch.testing.assert_close(ours, of_torch, rtol=0, atol=0, equal_nan=True)
    grad = torch.randint(-5, 6, ours.shape).to(ours.dtype)
    both = (torch.autograd.grad(y, leaves, grad, retain_graph=True) for y in (of_torch, ours))
    assert all(a.equal(b) for a, b in zip(*both, strict=True)), case
