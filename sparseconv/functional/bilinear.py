"""Gradients, to any order, of operations that are linear in each of two tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C import _are_functorch_transforms_active
from torch.autograd import forward_ad
from torch.compiler import is_dynamo_compiling

Operation = Callable[..., Tensor]
Derivatives = Callable[..., Any]  # of each tensor, a product and its two tensors


class Bilinear(NamedTuple):
    """What ``bilinear`` makes; the gradients of each are made of the two others."""

    fprop: type[Differentiable]
    dgrad: type[Differentiable]
    wgrad: type[Differentiable]


def is_transformed() -> bool:
    """Whether a transform of ``torch.func`` is at work, or torch differentiates in forward mode."""
    return _are_functorch_transforms_active() or forward_ad._current_level >= 0


class Rest:
    """The arguments that are not tensors: torch.func would look into a tuple for some."""

    def __init__(self, args: tuple[Any, ...]) -> None:
        self.args = args


def apply(function: type[torch.autograd.Function], *args: Any) -> Tensor:
    """``function.apply``, typed."""
    result: Tensor = function.apply(*args)  # type: ignore[no-untyped-call]
    return result


class Differentiable(torch.autograd.Function):
    """An autograd function that torch.func and forward mode can transform.

    Its arguments are tensors, and a tuple of all others.
    """

    generate_vmap_rule = True

    @classmethod
    def call(cls, *args: Any) -> Tensor:
        """Compute; record a derivative where torch asks for one."""
        *tensors, rest = args
        if is_dynamo_compiling() and is_transformed():
            raise NotImplementedError(
                "torch.compile with fullgraph=True cannot compile a sparse convolution inside of "
                "torch.func (vmap, grad, jvp, ...) or forward-mode differentiation; leave "
                "fullgraph=True out, or apply the transform to the module that is not compiled"
            )
        if is_transformed() or torch.is_grad_enabled():
            result: Tensor = cls.apply(*tensors, Rest(rest))  # type: ignore[no-untyped-call]
            return result
        return cls.compute(*tensors, *rest)

    @staticmethod
    def compute(*args: Any) -> Tensor:
        """Return the result, given the tensors and all others."""
        raise NotImplementedError

    def __init_subclass__(cls) -> None:
        def forward(*args: Any) -> Tensor:
            *tensors, rest = args
            return cls.compute(*tensors, *rest.args)

        cls.forward = staticmethod(forward)  # type: ignore[method-assign]


def save(ctx: Any, tensors: tuple[Tensor | None, ...], rest: Rest) -> None:
    """Keep arguments for ``backward`` and for forward mode."""
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)
    ctx.rest = rest.args


def bilinear(fprop: Operation, dgrad: Operation, wgrad: Operation) -> Bilinear:
    """Make an operation ``y = fprop(x, w, *constants, *rest)`` differentiable, to any order.

    Args:
        fprop: the operation, linear in ``x`` and in ``w``; ``constants`` are tensors.
        dgrad: ``(grad, w, *constants, *rest)`` to the gradient of ``x``.
        wgrad: ``(grad, x, *constants, *rest)`` to the gradient of ``w``.

    Returns:
        The three; they are called with ``rest`` as one tuple.

    Example:
        >>> outer = bilinear(torch.outer, torch.mv, lambda grad, x: grad.t() @ x)
        >>> x, w = torch.ones(2, requires_grad=True), torch.ones(3)
        >>> outer.fprop.call(x, w, ()).sum().backward()
        >>> x.grad
        tensor([3., 3.])
    """

    def product(name: str, operation: Operation, derivatives: Derivatives) -> type[Differentiable]:
        class Product(Differentiable):
            compute = staticmethod(operation)

            @staticmethod
            def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
                save(ctx, inputs[:-1], inputs[-1])

            @staticmethod
            def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
                a, b, *constants = ctx.saved_tensors
                (of_a, others_a), (of_b, others_b) = derivatives(grad, a, b)
                need_a, need_b, *_ = ctx.needs_input_grad
                return (
                    of_a.call(*others_a, *constants, ctx.rest) if need_a else None,
                    of_b.call(*others_b, *constants, ctx.rest) if need_b else None,
                    *(None for _ in constants),
                    None,
                )

            @staticmethod
            def jvp(ctx: Any, da: Tensor, db: Tensor, *_: None) -> Tensor:
                a, b, *constants = ctx.saved_tensors
                first = Product.call(da, b, *constants, ctx.rest)
                return first + Product.call(a, db, *constants, ctx.rest)

        Product._backward_cls.__name__ = f"{name}Backward"  # what a tensor's grad_fn shows
        return Product

    made = Bilinear(
        product("Fprop", fprop, lambda g, x, w: ((made.dgrad, (g, w)), (made.wgrad, (g, x)))),
        product("Dgrad", dgrad, lambda g, y, w: ((made.fprop, (g, w)), (made.wgrad, (y, g)))),
        product("Wgrad", wgrad, lambda g, y, x: ((made.fprop, (x, g)), (made.dgrad, (y, g)))),
    )
    return made
