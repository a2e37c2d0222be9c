"""``sparse_conv1d``: the checks, the choice of a backend and the gradients."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._C import _is_tracing
from torch.compiler import is_compiling

from sparseconv import reference
from sparseconv.core.checks import ArgumentError, flag
from sparseconv.core.geometry import DTYPES, Geometry, Padding
from sparseconv.core.pattern import KernelCSR
from sparseconv.functional.bilinear import Differentiable, bilinear, differentiable
from sparseconv.ops import calls, gpu_plans
from sparseconv.ops.backends import extension, resolve_backend

T = TypeVar("T")
U = TypeVar("U")


class DtypeError(TypeError, RuntimeError):
    """A dtype that does not fit, of which ``F.conv1d`` makes a RuntimeError."""


def sparse_conv1d(
    input: Tensor,
    values: Tensor,
    pattern: KernelCSR,
    bias: Tensor | None = None,
    stride: int | tuple[int] = 1,
    padding: Padding = 0,
    dilation: int | tuple[int] = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    backend: str = "auto",
    relu: bool = False,
) -> Tensor:
    """Convolve with the active weights only.

    ``y[n, o, l] = bias[o] + sum over active (c, k) of w[o, c, k] * x[n, c, l*stride + k*dilation
    - left]``, the cross-correlation that ``F.conv1d`` computes with a weight that is zero outside
    ``pattern``. Differentiable in ``input``, ``values`` and ``bias``, twice and more.

    NaN and infinity travel along active weights only. A weight that is itself not finite also
    meets the zeros beyond the ends of the series, in padding and in gradients, and makes NaN there.

    Args:
        input: ``(N, C_in, L_in)`` or ``(C_in, L_in)``; float32, float64, bfloat16 or float16
            (the half types accumulate in float32); any strides.
        values: ``(nnz,)``, the active weights in the pattern's CSR order; dtype of ``input``.
        pattern: which weights are active; shape ``(C_out, C_in // groups, K)``.
        bias: ``(C_out,)`` or None.
        stride, dilation, groups: as in ``F.conv1d``.
        padding: as in ``F.conv1d``, or a pair ``(left, right)``, in samples.
        padding_mode: ``"zeros"``, ``"replicate"``, ``"reflect"`` or ``"circular"``, done inside
            the kernel: only the CUDA kernels make a padded copy of the input.
        backend: ``"auto"``, ``"cpp"`` (CPU kernels), ``"cuda"``, ``"triton"`` or ``"reference"``
            (dense). A named backend runs or raises.
        relu: replace negative outputs by 0 before they are stored; the bits of ``F.relu`` of the
            output, but that it makes 0 of a -0 in half types, and its gradients.

    Returns:
        ``(N, C_out, L_out)`` or ``(C_out, L_out)``.

    Raises:
        TypeError: an argument of the wrong type, or dtype (also a RuntimeError, as ``F.conv1d``
            raises).
        ValueError: shapes that do not fit (also a RuntimeError).
        RuntimeError: the named backend cannot run here.

    Example:
        >>> import torch, sparseconv as sc
        >>> pattern = sc.KernelCSR.from_mask(torch.tensor([[[True, False, True]]]))
        >>> sc.sparse_conv1d(torch.arange(5.0).view(1, 1, 5), torch.tensor([1.0, -1.0]), pattern)
        tensor([[[-2., -2., -2.]]])
    """
    if not isinstance(pattern, KernelCSR):
        raise TypeError(
            f"pattern must be a KernelCSR, but got {type(pattern).__name__}; "
            "make one with KernelCSR.from_mask(mask)"
        )
    if relu is not True and relu is not False:
        relu = flag("relu", relu)
    geometry = Geometry.of(pattern.shape, stride, padding, dilation, groups, padding_mode)
    return sparse_conv1d_resolved(input, values, pattern, bias, geometry, backend, relu)


def sparse_conv1d_resolved(
    input: Tensor,
    values: Tensor,
    pattern: KernelCSR,
    bias: Tensor | None,
    geometry: Geometry,
    backend: str,
    relu: bool = False,
) -> Tensor:
    """``sparse_conv1d`` with resolved arguments."""
    if not (
        isinstance(input, Tensor)
        and isinstance(values, Tensor)
        and (bias is None or isinstance(bias, Tensor))
    ):
        _refuse_types(input, values, bias)
    device = input.device
    if (
        extension is not None
        and not (is_compiling() or _is_tracing())
        and resolve_backend(backend, device) == "cpp"
    ):
        plan = calls.conv_plan(pattern, geometry)
        plain: Tensor | None = extension.plain_conv(input, values, bias, plan, relu)
        if plain is not None:
            return plain
    # The check for any device is first: it takes a third of the time.
    if torch._C._is_any_autocast_enabled() and torch.is_autocast_enabled(device.type):
        input, values, bias = as_autocast(input, values, bias)
    check(input, values, pattern, bias, geometry)
    x = input if input.dim() == 3 else input.unsqueeze(0)
    pays = device.type == "cuda" and gpu_plans.cuda_pays(x.dtype, pattern, geometry)
    name = "reference" if _leaves_torch() else resolve_backend(backend, device, pays)
    ops: ModuleType = calls
    if name == "triton":
        from sparseconv.ops import triton

        ops = triton
    if name == "reference":
        y = reference.conv1d_dense(x, values, pattern, bias, *geometry[1:])
        y = y.relu() if relu else y
    else:
        y = differentiable(_Fprop, x, values, bias, pattern, geometry, relu, ops)
    return y if x is input else y.squeeze(0)


def _leaves_torch() -> bool:
    """Whether torch exports a graph for ONNX, whose runtimes do not have the kernels."""
    return (is_compiling() or _is_tracing()) and torch.onnx.is_in_onnx_export()


def as_autocast(*tensors: Tensor | None) -> tuple[Any, ...]:
    """Cast as autocast does for F.conv1d: everything but float64."""
    return tuple(
        t
        if t is None or t.dtype == torch.float64
        else t.to(torch.get_autocast_dtype(t.device.type))
        for t in tensors
    )


def check(
    input: Tensor, values: Tensor, pattern: KernelCSR, bias: Tensor | None, geometry: Geometry
) -> None:
    """Refuse what the kernels cannot compute, in F.conv1d's words where it has them."""
    dtype, device = input.dtype, input.device
    if not (
        dtype in DTYPES
        and input.layout is torch.strided
        and values.layout is torch.strided
        and values.dtype is dtype
        and values.device == device
        and (bias is None or (bias.dtype is dtype and bias.device == device))
    ):
        _refuse_types(input, values, bias)
    (out_channels, group_channels, _), _, _, _, groups, _ = geometry
    size = input.shape
    if len(size) not in (2, 3) or size[-1] == 0:
        raise ArgumentError(
            "Expected 2D (unbatched) or 3D (batched) input to sparse_conv1d with optional 0 dim "
            f"batch size, but got input of size: {list(size)}"
        )
    if size[-2] != group_channels * groups:
        raise ArgumentError(
            f"Given groups={groups}, weight of size {list(geometry.shape)}, expected "
            f"input{list(size)} to have {group_channels * groups} channels, but got "
            f"{size[-2]} channels instead"
        )
    if values.shape != (pattern.nnz,):
        raise ArgumentError(
            f"values must have shape ({pattern.nnz},), one value for each active weight of the "
            f"pattern, but got {list(values.shape)}"
        )
    if bias is not None and bias.shape != (out_channels,):
        raise ArgumentError(
            f"Given weight of size {list(geometry.shape)}, expected bias to be 1-dimensional "
            f"with {out_channels} elements, but got bias of size {list(bias.shape)} instead"
        )
    geometry.check_length(size[-1])


_FX = (
    "; torch.fx.symbolic_trace cannot look into a SparseConv1d: use a torch.fx.Tracer whose "
    "is_leaf_module(module, name) is True for it, or torch.export"
)


def _refuse_types(input: Tensor, values: Tensor, bias: Tensor | None) -> None:
    for name, tensor in (("input", input), ("values", values), ("bias", bias)):
        if tensor is None and name == "bias":
            continue
        if not isinstance(tensor, Tensor):
            kind = type(tensor)
            traced = kind.__module__.startswith("torch.fx")
            raise TypeError(
                f"{name} must be a Tensor, but got {kind.__name__}" + (_FX if traced else "")
            )
        if tensor.layout != torch.strided:
            raise TypeError(
                f"{name} must be a dense tensor, but got {tensor.layout}; convert it by .to_dense()"
            )
        if tensor.dtype != input.dtype:
            raise DtypeError(
                f"Input type ({input.dtype}) and {name} type ({tensor.dtype}) should be the same"
            )
        if tensor.device != input.device:
            raise ArgumentError(
                f"Expected all tensors to be on the same device, but input is on {input.device} "
                f"and {name} on {tensor.device}; move one with .to()"
            )
    raise DtypeError(f"input must have one of the dtypes {DTYPES}, but got {input.dtype}")


# The operation is bilinear in (input, values): that is what makes every order of differentiation
# available. The context is (pattern, geometry, input length, the module whose kernels run).
_CONV = bilinear(
    lambda x, values, pattern, geometry, _, ops: ops.fprop(x, values, None, pattern, geometry),
    lambda grad, values, pattern, geometry, length, ops: ops.dgrad(
        grad, values, pattern, geometry, length
    ),
    lambda grad, x, pattern, geometry, _, ops: ops.wgrad(grad, x, pattern, geometry),
)


class _Fprop(Differentiable):
    """With a bias, and with ReLU."""

    tensors = 3

    @staticmethod
    def compute(
        x: Tensor,
        values: Tensor,
        bias: Tensor | None,
        pattern: KernelCSR,
        geometry: Geometry,
        relu: bool,
        ops: ModuleType,
    ) -> Tensor:
        y: Tensor = ops.fprop(x, values, bias, pattern, geometry, relu)
        return y

    @staticmethod
    def keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, values, _, pattern, geometry, relu, ops = inputs
        ctx.save_for_backward(x, values, output if relu else None)
        ctx.save_for_forward(x, values, output if relu else None)
        ctx.context = pattern, geometry, ops

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        values: Tensor,
        bias: Tensor | None,
        pattern: KernelCSR,
        geometry: Geometry,
        relu: bool,
        ops: ModuleType,
    ) -> Tensor:
        y: Tensor = ops.fprop(x, values, bias, pattern, geometry, relu)
        ctx.save_for_backward(x, values, y if relu else None)
        ctx.context = pattern, geometry, ops
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), (x, values, y) = grads, ctx.saved_tensors
        if y is not None:
            grad = torch.ops.aten.threshold_backward(grad, y, 0)  # where y > 0, as F.relu's
        need_x, need_values, need_bias, *_ = ctx.needs_input_grad
        pattern, geometry, ops = ctx.context
        # Read off the tensor: to a compiler a number kept in the context is always this number.
        context = pattern, geometry, x.shape[2], ops

        def of_parameters() -> tuple[Tensor | None, Tensor | None]:
            return (
                differentiable(_CONV.wgrad, grad, x, *context) if need_values else None,
                _bias_gradient(grad, pattern, ops) if need_bias else None,
            )

        def of_input() -> Tensor | None:
            return differentiable(_CONV.dgrad, grad, values, *context) if need_x else None

        of_x, (of_values, of_bias) = _side_by_side(of_input, of_parameters, grad.device)
        return (of_x, of_values, of_bias, *4 * (None,))

    @staticmethod
    def tangent(ctx: Any, *tangents: Any) -> Tensor:
        (dx, dvalues, dbias, *_), (x, values, y) = tangents, ctx.saved_tensors
        pattern, geometry, ops = ctx.context
        moved = differentiable(_CONV.fprop, dx, values, pattern, geometry, x.shape[2], ops)
        turned = differentiable(_Fprop, x, dvalues, dbias, pattern, geometry, False, ops)
        dy = moved + turned
        return dy if y is None else torch.ops.aten.threshold_backward(dy, y, 0)


def gradients_by_python(
    grad: Tensor,
    x: Tensor,
    values: Tensor,
    crow: Tensor,
    col: Tensor,
    numbers: list[int],
    needed: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """The gradients of what C++ has computed, where they have to have gradients themselves.

    Called by csrc/autograd/conv.cpp, for double backward and torch's transforms.
    """
    geometry = Geometry.from_numbers(numbers)
    pattern = calls.pattern_of(crow, col, geometry)
    context = pattern, geometry, x.shape[2], calls
    return (
        differentiable(_CONV.dgrad, grad, values, *context) if needed[0] else None,
        differentiable(_CONV.wgrad, grad, x, *context) if needed[1] else None,
        _bias_gradient(grad, pattern, calls) if needed[2] else None,
    )


def _side_by_side(
    first: Callable[[], T], second: Callable[[], U], device: torch.device
) -> tuple[T, U]:
    """Call both; while a CUDA graph is captured, as branches of it that run at the same time.

    On short series a gradient alone leaves most of a GPU idle. Elsewhere a second stream would
    cost more than it gains.
    """
    if device.type != "cuda" or is_compiling() or not torch.cuda.is_current_stream_capturing():
        return first(), second()
    here, beside = torch.cuda.current_stream(device), _second_stream(device)
    beside.wait_stream(here)
    try:
        with torch.cuda.stream(beside):
            # Its memory is of this stream, which waits as above before it is used again.
            of_second = second()
        return first(), of_second
    finally:
        here.wait_stream(beside)  # or the end of the capture would hide the error


@functools.cache
def _second_stream(device: torch.device) -> Any:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _bias_pattern(pattern: KernelCSR) -> KernelCSR:
    return KernelCSR.full((pattern.shape[0], 1, 1))


def _bias_gradient(grad: Tensor, pattern: KernelCSR, ops: ModuleType) -> Tensor:
    """The bias is the weight of a channel of ones: torch's own sum on a CPU depends on threads."""
    if grad.is_cuda:
        return grad.contiguous().sum((0, 2))
    shape = (pattern.shape[0], 1, 1)
    ones = grad.new_ones(1).expand(grad.shape[0], 1, grad.shape[2])
    full = pattern.cached(_bias_pattern)
    geometry = Geometry(shape, 1, (0, 0), 1, 1, "zeros")
    return differentiable(_CONV.wgrad, grad, ones, full, geometry, grad.shape[2], ops)
