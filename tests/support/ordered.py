"""Layers one after the other on a tensor in the kernels' own order, by the ops alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

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
        y: Tensor = OPS.lanes_conv(x, self.values, self.bias, *arrays, n, length, self.relu)
        return y


class Pointwise(NamedTuple):
    """A dense convolution with one tap; its weight is ``(C_out, C_in, 1)``."""

    weight: Tensor
    bias: Tensor | None = None

    def run(self, x: Tensor, n: int, length: int) -> Tensor:
        y: Tensor = OPS.lanes_pointwise(x, self.weight, self.bias, n, length)
        return y


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
        y: Tensor = OPS.lanes_norm([x], *self[:4], None, *how)[0]
        return y


Stage = Conv | Pointwise | NormRelu


def run_ordered(x: Tensor, stages: Sequence[Stage]) -> Tensor:
    """Enter, compute all stages, and leave: ``(N, C, L)`` in and out."""
    n, channels, length = x.shape
    margin = max((max(s.geometry.padding) for s in stages if isinstance(s, Conv)), default=0)
    y = OPS.lanes_enter(x.to(torch.bfloat16) if torch.is_autocast_enabled("cpu") else x, margin)
    for stage in stages:
        y = stage.run(y, n, length)
        if isinstance(stage, Conv):
            channels = stage.geometry.shape[0]
        elif isinstance(stage, Pointwise):
            channels = stage.weight.shape[0]
    found: Tensor = OPS.lanes_leave(y, channels, n, length)
    return found
