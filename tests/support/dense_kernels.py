"""Kernels to measure that are not ours: dense PyTorch in their place, right or spoilt."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from sparseconv import KernelCSR
from sparseconv.core.geometry import Geometry
from sparseconv.reference import conv1d_dense

Ops = SimpleNamespace


def dense_ops(**wrong: Callable[[Tensor], Tensor]) -> Ops:
    """The three computations by autograd on the dense path; ``wrong`` spoils some."""

    def fprop(x: Tensor, values: Tensor, bias: Any, pattern: KernelCSR, g: Geometry) -> Tensor:
        return conv1d_dense(x, values, pattern, bias, *g[1:])

    def dgrad(grad: Tensor, values: Tensor, pattern: KernelCSR, g: Geometry, length: int) -> Tensor:
        x = (
            torch.zeros(grad.shape[0], pattern.shape[1] * g.groups, length)
            .to(grad)
            .requires_grad_()
        )
        return torch.autograd.grad(fprop(x, values, None, pattern, g), x, grad)[0]

    def wgrad(grad: Tensor, x: Tensor, pattern: KernelCSR, g: Geometry) -> Tensor:
        values = torch.zeros(pattern.nnz).to(grad).requires_grad_()
        return torch.autograd.grad(fprop(x, values, None, pattern, g), values, grad)[0]

    right = {"fprop": fprop, "dgrad": dgrad, "wgrad": wgrad}

    def spoil(name: str) -> Callable[..., Tensor]:
        return lambda *a: wrong[name](right[name](*a)) if name in wrong else right[name](*a)

    return Ops(**{name: spoil(name) for name in right})


def one_wrong(result: Tensor) -> Tensor:
    """Spoil the last element."""
    result = result.clone()
    result.view(-1)[-1] += 1e-3 * result.abs().max()
    return result
