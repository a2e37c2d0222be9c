"""Differentiate the convolution, to any order and under torch's transforms."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._C import _are_functorch_transforms_active
from torch.autograd import forward_ad
from torch.compiler import is_compiling, is_dynamo_compiling

from sparseconv.ops.backends import extension
from sparseconv.ops.flops import teach_running_counters
from sparseconv.ops.schemas import KERNELS, bias_grad

T = TypeVar("T")
U = TypeVar("U")


def is_transformed() -> bool:
    """Return whether a transform of ``torch.func`` or forward-mode differentiation is active."""
    return _are_functorch_transforms_active() or forward_ad._current_level >= 0


class NonTensorArgs:
    """Hold the arguments that are not tensors; torch.func would search a tuple for tensors."""

    def __init__(self, args: tuple[Any, ...]) -> None:
        self.args = args


class Differentiable(torch.autograd.Function):
    """Define a function, of tensors and ``NonTensorArgs``, that torch can differentiate."""

    generate_vmap_rule = True

    @classmethod
    def call(cls, *args: Any) -> Tensor:
        """Compute from tensors and a tuple, and record a derivative where torch needs one."""
        *tensors, rest = args
        if is_dynamo_compiling() and is_transformed():
            raise NotImplementedError(
                "torch.compile with fullgraph=True cannot compile a sparse convolution inside "
                "torch.func (vmap, grad, jvp, ...) or forward-mode differentiation; omit "
                "fullgraph=True, or apply the transform to the uncompiled module"
            )
        record: Any = cls.apply  # not in a separate function: torch.compile would trace it
        run = record if is_transformed() or torch.is_grad_enabled() else cls.forward
        result: Tensor = run(*tensors, NonTensorArgs(rest))
        return result


def save(ctx: Any, tensors: tuple[Tensor | None, ...], rest: NonTensorArgs) -> None:
    """Save the arguments for ``backward`` and for forward mode."""
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)
    ctx.rest = rest.args


# The convolution is linear in the input and in the values, so its gradients of every order are the
# same three functions. Their arguments are two tensors (and a bias), crow_indices, col_indices and
# a tuple of all others.
class Fprop(Differentiable):
    @staticmethod
    def forward(*args: Any) -> Tensor:
        *tensors, rest = args
        numbers, relu, backend = rest.args
        y: Tensor = KERNELS[backend].fprop(*tensors, numbers, relu)
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, values, _, crow, col, rest = inputs
        _, relu, _ = rest.args
        save(ctx, (x, values, output if relu else None, crow, col), rest)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), (x, values, y, crow, col) = grads, ctx.saved_tensors
        numbers, _, backend = ctx.rest
        if y is not None:
            grad = torch.ops.aten.threshold_backward(grad, y, 0)  # 0 unless y > 0, as in F.relu
        needed = ctx.needs_input_grad[:3]
        return *gradients(grad, x, values, crow, col, numbers, needed, backend), None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        (dx, dvalues, dbias, *_), (x, values, y, crow, col) = tangents, ctx.saved_tensors
        numbers, _, backend = ctx.rest
        rest = crow, col, (numbers, False, backend)
        dy = Fprop.call(dx, values, None, *rest) + Fprop.call(x, dvalues, dbias, *rest)
        return dy if y is None else torch.ops.aten.threshold_backward(dy, y, 0)


class Gradient(Differentiable):
    """Compute dgrad or wgrad from the output's gradient and the values or input, respectively.

    Only dgrad adds a bias, if it is a transposed convolution.
    """

    @staticmethod
    def forward(*args: Any) -> Tensor:
        grad, factor, bias, crow, col, rest = args
        op, numbers, length, backend = rest.args
        sizes = (numbers, length, bias) if op == "dgrad" else (numbers,)
        g: Tensor = getattr(KERNELS[backend], op)(grad, factor, crow, col, *sizes)
        return g

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        grad, factor, _, crow, col, rest = inputs
        save(ctx, (grad, factor, crow, col), rest)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (found,), (grad, factor, crow, col) = grads, ctx.saved_tensors
        (op, numbers, _, backend), (need_grad, need_factor, *others) = (
            ctx.rest,
            ctx.needs_input_grad,
        )
        if op == "dgrad":
            x, values, other = found, factor, "wgrad"
        else:
            x, values, other = factor, found, "dgrad"
        again, turned = (numbers, False, backend), (other, numbers, x.shape[2], backend)
        return (
            Fprop.call(x, values, None, crow, col, again) if need_grad else None,
            Gradient.call(grad, found, None, crow, col, turned) if need_factor else None,
            _bias_gradient(found) if any(others) else None,
            *(None, None, None),
        )

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        (of_grad, of_factor, of_bias, *_), (grad, factor, *indices) = tangents, ctx.saved_tensors
        rest = *indices, ctx.rest
        moved = Gradient.call(of_grad, factor, of_bias, *rest)
        return moved + Gradient.call(grad, of_factor, None, *rest)


def _register_gradient(op: str, backend: str) -> None:
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, numbers, relu = inputs
        Fprop.setup_context(ctx, (*tensors, NonTensorArgs((numbers, relu, backend))), output)

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *Fprop.backward(ctx, grad), None

    torch.library.register_autograd(f"sparseconv::{op}", backward, setup_context=setup_context)


def _register_gradient_of_dgrad(op: str, backend: str) -> None:
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        grad, values, crow, col, numbers, length, bias = inputs
        rest = NonTensorArgs(("dgrad", numbers, length, backend))
        Gradient.setup_context(ctx, (grad, values, bias, crow, col, rest), output)

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        of_grad, of_values, of_bias, *_ = Gradient.backward(ctx, grad)
        return of_grad, of_values, None, None, None, None, of_bias

    torch.library.register_autograd(f"sparseconv::{op}", backward, setup_context=setup_context)


if extension is None:  # else csrc/autograd/conv.cpp does this in less time
    _register_gradient("triton_fprop", "triton")
    _register_gradient_of_dgrad("triton_dgrad", "triton")


# csrc/autograd/conv.cpp calls this except in plain backward passes on a CPU.
def gradients(
    grad: Tensor,
    x: Tensor,
    values: Tensor,
    crow: Tensor,
    col: Tensor,
    numbers: Sequence[int],
    needed: Sequence[bool],
    backend: str,
    transposed: bool = False,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the needed gradients of input, values and bias, which are also differentiable."""
    teach_running_counters()
    of_output, input = (x, grad) if transposed else (grad, x)
    # The length is read from the tensor: a compiler treats numbers in the context as constants.
    how, indices = (tuple(numbers), input.shape[2], backend), (crow, col)

    def of_parameters() -> tuple[Tensor | None, Tensor | None]:
        return (
            Gradient.call(of_output, input, None, *indices, ("wgrad", *how)) if needed[1] else None,
            _bias_gradient(grad) if needed[2] else None,
        )

    def of_input() -> Tensor | None:
        if not needed[0]:
            return None
        if transposed:
            return Fprop.call(grad, values, None, *indices, (tuple(numbers), False, backend))
        return Gradient.call(grad, values, None, *indices, ("dgrad", *how))

    of_x, (of_values, of_bias) = _side_by_side(of_input, of_parameters, grad.device)
    return of_x, of_values, of_bias


if extension is not None:
    extension.set_gradients(gradients)


def _side_by_side(
    first: Callable[[], T], second: Callable[[], U], device: torch.device
) -> tuple[T, U]:
    """Call both functions; while a CUDA graph is captured, make them parallel branches of it."""
    # On short series one gradient leaves most of a GPU idle. Outside a graph, a second stream would
    # cost more than it gains.
    if device.type != "cuda" or is_compiling() or not torch.cuda.is_current_stream_capturing():
        return first(), second()
    here, other = torch.cuda.current_stream(device), _second_stream(device)
    other.wait_stream(here)
    try:
        with torch.cuda.stream(other):
            # The other stream owns the result's memory, and waits as above before it reuses it.
            of_second = second()
        return first(), of_second
    finally:
        here.wait_stream(other)  # without it, the end of the capture would hide the error


@functools.cache
def _second_stream(device: torch.device) -> Any:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _bias_gradient(grad: Tensor) -> Tensor:
    # The bits of torch's own sum depend on the number of threads, but it has a gradient.
    if (
        grad.device.type == "cpu"
        and extension is not None
        and not (torch.is_grad_enabled() or is_transformed())
    ):
        return bias_grad(grad)  # type: ignore[no-any-return]
    return grad.contiguous().sum((0, 2))  # the bits of a sum may depend on strides
