"""Gradients, to any order, of operations that are linear in each of two tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

Product = Callable[..., Tensor]


class Bilinear(NamedTuple):
    """What ``bilinear`` makes; the gradients of each are made of the two others."""

    fprop: type[_Product]
    dgrad: type[_Product]
    wgrad: type[_Product]


def apply(function: type[torch.autograd.Function], *args: Any) -> Tensor:
    """``function.apply``, typed."""
    result: Tensor = function.apply(*args)  # type: ignore[no-untyped-call]
    return result


class _Product(torch.autograd.Function):
    product: Product

    @classmethod
    def run(cls, *args: Any) -> Tensor:
        """The product; while no graph is made of a backward pass, without the wrapping."""
        return apply(cls, *args) if torch.is_grad_enabled() else cls.product(*args)


def gradients(
    ctx: Any,
    first: type[_Product],
    first_args: tuple[Tensor, Tensor],
    second: type[_Product],
    second_args: tuple[Tensor, Tensor],
) -> tuple[Tensor | None, ...]:
    """Those of the two tensors that need one, and none of the context."""
    need_first, need_second, *_ = ctx.needs_input_grad
    return (
        first.run(*first_args, *ctx.context) if need_first else None,
        second.run(*second_args, *ctx.context) if need_second else None,
        *(None,) * len(ctx.context),
    )


def bilinear(fprop: Product, dgrad: Product, wgrad: Product) -> Bilinear:
    """Make an operation ``y = fprop(x, w, *context)`` differentiable.

    Args:
        fprop: the operation, linear in ``x`` and in ``w``.
        dgrad: ``(grad, w, *context)`` to the gradient of ``x``.
        wgrad: ``(grad, x, *context)`` to the gradient of ``w``.

    Returns:
        The three as functions to ``apply``.

    Example:
        >>> outer = bilinear(torch.outer, torch.mv, lambda grad, x: grad.t() @ x)
        >>> x, w = torch.ones(2, requires_grad=True), torch.ones(3)
        >>> apply(outer.fprop, x, w).sum().backward()
        >>> x.grad
        tensor([3., 3.])
    """

    class Fprop(_Product):
        product = staticmethod(fprop)

        @staticmethod
        def forward(ctx: Any, x: Tensor, w: Tensor, *context: Any) -> Tensor:
            ctx.save_for_backward(x, w)
            ctx.context = context
            return fprop(x, w, *context)

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
            (grad,), (x, w) = grads, ctx.saved_tensors
            return gradients(ctx, Dgrad, (grad, w), Wgrad, (grad, x))

    class Dgrad(_Product):
        product = staticmethod(dgrad)

        @staticmethod
        def forward(ctx: Any, grad: Tensor, w: Tensor, *context: Any) -> Tensor:
            ctx.save_for_backward(grad, w)
            ctx.context = context
            return dgrad(grad, w, *context)

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
            (gradgrad,), (grad, w) = grads, ctx.saved_tensors
            return gradients(ctx, Fprop, (gradgrad, w), Wgrad, (grad, gradgrad))

    class Wgrad(_Product):
        product = staticmethod(wgrad)

        @staticmethod
        def forward(ctx: Any, grad: Tensor, x: Tensor, *context: Any) -> Tensor:
            ctx.save_for_backward(grad, x)
            ctx.context = context
            return wgrad(grad, x, *context)

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
            (gradgrad,), (grad, x) = grads, ctx.saved_tensors
            return gradients(ctx, Fprop, (x, gradgrad), Dgrad, (grad, gradgrad))

    return Bilinear(Fprop, Dgrad, Wgrad)
