"""Gradients, to any order, of operations that are linear in each of two tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C import _are_functorch_transforms_active, _is_tracing
from torch.autograd import forward_ad
from torch.compiler import is_dynamo_compiling

from sparseconv.core.tracing import is_exporting
from sparseconv.ops.flops import teach_counters

Operation = Callable[..., Tensor]
Gradients = Callable[..., tuple[Tensor | None, ...]]


class Bilinear(NamedTuple):
    """What ``bilinear`` makes; the gradients of each are made of the two others."""

    fprop: type[Product]
    dgrad: type[Product]
    wgrad: type[Product]


def is_transformed() -> bool:
    """Whether a transform of ``torch.func`` is at work, or torch differentiates in forward mode."""
    return _are_functorch_transforms_active() or forward_ad._current_level >= 0


class _Rest:
    """The arguments that are no tensors: torch.func would look into a tuple for some."""

    def __init__(self, args: tuple[Any, ...]) -> None:
        self.args = args


class Differentiable(torch.autograd.Function):
    """A function in two forms: the usual one, and one for ``torch.func`` and forward mode.

    Subclasses write ``forward`` and ``backward``: that is called in the least time, and is all
    that torch.compile knows. ``transformable`` is made of it, ``keep`` and ``tangent``.
    """

    tensors = 2  # how many arguments are tensors, or None; they come first
    transformable: type[torch.autograd.Function]

    @staticmethod
    def compute(*args: Any) -> Tensor:
        """The result, of what ``forward`` takes after its context."""
        raise NotImplementedError

    @staticmethod
    def keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Save what ``backward`` and ``tangent`` need."""
        raise NotImplementedError

    @staticmethod
    def tangent(ctx: Any, *tangents: Any) -> Tensor:
        """The derivative in the direction of ``tangents``."""
        raise NotImplementedError

    def __init_subclass__(cls) -> None:
        class Transformable(torch.autograd.Function):
            generate_vmap_rule = True
            jvp = staticmethod(cls.tangent)

            @staticmethod
            def forward(*args: Any) -> Tensor:
                *tensors, rest = args
                return cls.compute(*tensors, *rest.args)

            @staticmethod
            def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
                *tensors, rest = inputs
                cls.keep(ctx, (*tensors, *rest.args), output)

            @staticmethod
            def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
                return (*cls.backward(ctx, *grads)[: cls.tensors], None)

        cls.transformable = Transformable


def apply(function: type[torch.autograd.Function], *args: Any) -> Tensor:
    """``function.apply``, typed."""
    result: Tensor = function.apply(*args)  # type: ignore[no-untyped-call]
    return result


def differentiable(function: type[Differentiable], *args: Any) -> Tensor:
    """The result, in the form that fits how torch is running.

    While no gradients are recorded, it is only computed.
    """
    dynamo = is_dynamo_compiling()
    if not dynamo and torch._C._len_torch_dispatch_stack():
        teach_counters()
    if is_transformed():
        if dynamo:
            raise NotImplementedError(
                "torch.compile with fullgraph=True cannot compile a sparse convolution inside of "
                "torch.func (vmap, grad, jvp, ...) or forward-mode differentiation; leave "
                "fullgraph=True out, or apply the transform to the module that is not compiled"
            )
        tensors, rest = args[: function.tensors], args[function.tensors :]
        return apply(function.transformable, *tensors, _Rest(rest))
    # An exported or traced graph holds the op alone: it can be saved, and has no derivative.
    if (dynamo or torch.is_grad_enabled()) and not (
        is_exporting() or (not dynamo and _is_tracing())
    ):
        return apply(function, *args)
    return function.compute(*args)


class Product(Differentiable):
    """fprop, dgrad or wgrad as an autograd function."""

    @staticmethod
    def keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        a, b, *context = inputs
        ctx.save_for_backward(a, b)
        ctx.save_for_forward(a, b)
        ctx.context = context


def gradients(
    ctx: Any,
    first: type[Product],
    first_args: tuple[Tensor, Tensor],
    second: type[Product],
    second_args: tuple[Tensor, Tensor],
) -> tuple[Tensor | None, ...]:
    """Those of the two tensors that need one, and none of the context."""
    need_first, need_second, *_ = ctx.needs_input_grad
    return (
        differentiable(first, *first_args, *ctx.context) if need_first else None,
        differentiable(second, *second_args, *ctx.context) if need_second else None,
        *(None,) * len(ctx.context),
    )


def bilinear(fprop: Operation, dgrad: Operation, wgrad: Operation) -> Bilinear:
    """Make an operation ``y = fprop(x, w, *context)`` differentiable.

    Args:
        fprop: the operation, linear in ``x`` and in ``w``.
        dgrad: ``(grad, w, *context)`` to the gradient of ``x``.
        wgrad: ``(grad, x, *context)`` to the gradient of ``w``.

    Returns:
        The three as functions for ``differentiable``.

    Example:
        >>> outer = bilinear(torch.outer, torch.mv, lambda grad, x: grad.t() @ x)
        >>> x, w = torch.ones(2, requires_grad=True), torch.ones(3)
        >>> differentiable(outer.fprop, x, w).sum().backward()
        >>> x.grad
        tensor([3., 3.])
    """

    def product(name: str, operation: Operation, derivative: Gradients) -> type[Product]:
        class Made(Product):
            compute = staticmethod(operation)
            backward = staticmethod(derivative)

            @staticmethod
            def forward(ctx: Any, a: Tensor, b: Tensor, *context: Any) -> Tensor:
                ctx.save_for_backward(a, b)
                ctx.context = context
                return operation(a, b, *context)

            @staticmethod
            def tangent(ctx: Any, da: Tensor, db: Tensor, *_: None) -> Tensor:
                a, b = ctx.saved_tensors
                return differentiable(Made, da, b, *ctx.context) + differentiable(
                    Made, a, db, *ctx.context
                )

        Made._backward_cls.__name__ = f"{name}Backward"  # what a tensor's grad_fn shows
        return Made

    def of_fprop(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, w = ctx.saved_tensors
        return gradients(ctx, made.dgrad, (grad, w), made.wgrad, (grad, x))

    def of_dgrad(ctx: Any, gradgrad: Tensor) -> tuple[Tensor | None, ...]:
        grad, w = ctx.saved_tensors
        return gradients(ctx, made.fprop, (gradgrad, w), made.wgrad, (grad, gradgrad))

    def of_wgrad(ctx: Any, gradgrad: Tensor) -> tuple[Tensor | None, ...]:
        grad, x = ctx.saved_tensors
        return gradients(ctx, made.fprop, (x, gradgrad), made.dgrad, (grad, gradgrad))

    made = Bilinear(
        product("Fprop", fprop, of_fprop),
        product("Dgrad", dgrad, of_dgrad),
        product("Wgrad", wgrad, of_wgrad),
    )
    return made
