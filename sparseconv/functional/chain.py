"""Layers in a row as one autograd function, on tensors in the kernels' own order.

Between the layers a series is not a row of memory: 16 series, or pieces of series, lie side by side
in vectors (``csrc/cpu/lane_order.h``). No strided tensor can say that, so the order never leaves a
chain: its input and output are ordinary tensors, converted once in and once out, and what lies
between is seen by nobody.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sparseconv.core.geometry import Geometry
from sparseconv.core.pattern import KernelCSR
from sparseconv.functional.bilinear import is_transformed
from sparseconv.functional.conv import sparse_conv1d_resolved
from sparseconv.ops.backends import extension
from sparseconv.ops.calls import conv_plan

DTYPES = (torch.float32, torch.float64)


def runs_eagerly() -> bool:
    """Whether torch just computes: no tracer, cast, transform, or derivative in forward mode."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._is_tracing()  # torch.jit.is_tracing() asks the same, and takes longer
        or torch._C._is_any_autocast_enabled()
        or is_transformed()
    )


class Conv(NamedTuple):
    """A sparse convolution that keeps the length, and perhaps a ReLU; see ``keeps_order``."""

    values: Tensor
    bias: Tensor | None
    pattern: KernelCSR
    geometry: Geometry
    relu: bool = False

    @property
    def tensors(self) -> tuple[Tensor | None, Tensor | None]:
        return self.values, self.bias

    def by_torch(self, x: Tensor, values: Any, bias: Any) -> Tensor:
        """The same, differentiable twice and more."""
        return sparse_conv1d_resolved(
            x, values, self.pattern, bias, self.geometry, "cpp", self.relu
        )


class Pointwise(NamedTuple):
    """A dense convolution with one tap, ``F.conv1d(x, weight)``; weight ``(C_out, C_in, 1)``."""

    weight: Tensor

    @property
    def tensors(self) -> tuple[Tensor | None, Tensor | None]:
        return self.weight, None

    def by_torch(self, x: Tensor, weight: Any, _: Any) -> Tensor:
        return F.conv1d(x, weight)


class NormRelu(NamedTuple):
    """``F.relu(F.batch_norm(...))``; in training it may update the running statistics."""

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    momentum: float
    eps: float
    training: bool = True  # else with the running statistics, while nothing is recorded

    @property
    def tensors(self) -> tuple[Tensor | None, Tensor | None]:
        return self.weight, self.bias

    def by_torch(self, x: Tensor, weight: Any, bias: Any) -> Tensor:
        return F.relu(F.batch_norm(x, None, None, weight, bias, True, 0.0, self.eps))


Stage = Conv | Pointwise | NormRelu


def keeps_order(geometry: Geometry) -> bool:
    """Whether the kernels can take and give tensors in their own order.

    Outputs are as long as inputs, padding is zeros or replicated on the right alone.

    Example:
        >>> keeps_order(Geometry.of((8, 4, 3), 1, "same", 1, 1, "zeros"))
        True
    """
    return extension is not None and bool(extension.keeps_order(geometry.numbers))


def run_chain(x: Tensor, stages: Sequence[Stage]) -> Tensor:
    """Compute the stages one after the other, on tensors in the kernels' own order.

    Args:
        x: ``(N, C, L)``, float32 or float64 on the CPU, not empty; any strides.
        stages: what is computed; every tensor contiguous, of the dtype of ``x``, and of a size that
            fits.

    Returns:
        ``(N, C_out, L)``, contiguous. Convolutions have the bits that they have alone; sums over
        positions (BatchNorm, gradients of weights) depend on N and L, but neither on the number of
        threads nor on the instruction set.

    Example:
        >>> geometry = Geometry.of((2, 1, 1), 1, 0, 1, 1, "zeros")
        >>> conv = Conv(torch.tensor([1.0, -1.0]), None, KernelCSR.full((2, 1, 1)), geometry, True)
        >>> run_chain(torch.tensor([[[-2.0, 3.0]]]), [conv, Pointwise(torch.ones(1, 2, 1))])
        tensor([[[2., 3.]]])
    """
    assert extension is not None
    chain = extension.Chain()
    statistics: list[Tensor | None] = []
    momenta = []
    for stage in stages:
        running: tuple[Tensor | None, Tensor | None] = None, None
        momentum = 0.0
        if isinstance(stage, Conv):
            chain.add_conv(conv_plan(stage.pattern, stage.geometry), stage.relu)
        elif isinstance(stage, Pointwise):
            chain.add_pointwise()
        else:
            chain.add_norm_relu(stage.eps, stage.training)
            running, momentum = (stage.running_mean, stage.running_var), stage.momentum
        statistics += running
        momenta.append(momentum)
    tensors = [tensor for stage in stages for tensor in stage.tensors]
    if torch.is_grad_enabled():
        y: Tensor = _Chain.apply(chain, tuple(stages), statistics, momenta, x, *tensors)  # type: ignore[no-untyped-call]
        return y
    y, _ = chain.forward(x, tensors, statistics, momenta, False)
    return y


class _Chain(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        chain: Any,
        stages: tuple[Stage, ...],
        statistics: list[Tensor | None],
        momenta: list[float],
        x: Tensor,
        *tensors: Tensor | None,
    ) -> Tensor:
        keep = any(ctx.needs_input_grad)
        y, kept = chain.forward(x, list(tensors), statistics, momenta, keep)
        ctx.save_for_backward(x, *tensors, *kept)
        ctx.chain, ctx.stages = chain, stages
        result: Tensor = y
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        x, *saved = ctx.saved_tensors
        count = 2 * len(ctx.stages)
        tensors, kept = saved[:count], saved[count:]
        inputs = x, *tensors
        found: Sequence[Tensor | None]
        assert extension is not None
        needed = ctx.needs_input_grad[4:]
        if (
            torch.compiler.is_compiling()
            or torch.is_grad_enabled()
            or not extension.computes_plainly(grad)
        ):
            found = _gradients_by_torch(ctx.stages, grad, inputs, needed)
        else:
            # Gradients that nobody asked for, as in autograd.grad(y, x), are not computed.
            asked = iter(extension.needed_gradients())
            needed = [
                tensor is not None and next(asked, need)
                for tensor, need in zip(inputs, needed, strict=True)
            ]
            found = ctx.chain.backward(grad, kept, tensors, needed)
        return (*4 * (None,), *found)


def _gradients_by_torch(
    stages: Sequence[Stage], grad: Tensor, inputs: Sequence[Any], needed: Sequence[bool]
) -> list[Tensor | None]:
    """The gradients, by operations that have gradients themselves, and can be transformed."""

    def outputs(*wanted: Tensor) -> Tensor:
        given = iter(wanted)
        y, *tensors = (next(given) if need else x for x, need in zip(inputs, needed, strict=True))
        for i, stage in enumerate(stages):
            y = stage.by_torch(y, *tensors[2 * i : 2 * i + 2])
        return y

    _, pull_back, *_ = torch.func.vjp(outputs, *itertools.compress(inputs, needed))
    found = iter(pull_back(grad))
    return [next(found) if need else None for need in needed]
