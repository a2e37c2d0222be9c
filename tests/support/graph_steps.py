"""Steps of models that the backend of ``torch.compile`` compiles."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

import sparseconv as sc
from sparseconv.compiler import sparseconv


def compiled(model: nn.Module) -> Callable[[Tensor], Tensor]:
    return torch.compile(model, backend=sparseconv)  # its name is tried in tests/packaging


def sine(y: Tensor) -> Tensor:
    return y.sin().sum()


def linear(y: Tensor) -> Tensor:
    """A loss whose gradient does not depend on the rounding of its input."""
    weights = torch.arange(1.0, y.numel() + 1).cos().to(y.dtype)
    return (y.flatten() * weights).sum()


def step(
    model: nn.Module,
    run: Callable[[Tensor], Tensor],
    x: Tensor,
    loss: Callable[[Tensor], Tensor] = sine,
) -> list[Tensor]:
    """The output, all gradients, and the buffers afterwards."""
    x = x.clone().requires_grad_()
    y = run(x)
    grads = torch.autograd.grad(loss(y), [x, *model.parameters()], allow_unused=True)
    buffers = [b.clone() for b in model.buffers()]
    return [y.detach(), *(g for g in grads if g is not None), *buffers]


def sparse(inputs: int, outputs: int, taps: int, **options: object) -> sc.SparseConv1d:
    options = {"padding": "same", "density": 0.3} | options
    return sc.SparseConv1d(inputs, outputs, taps, **options)
