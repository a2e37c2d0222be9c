"""Check the arguments of ``sparse_conv1d``, choose a backend, and compute gradients."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._C import _is_tracing
from torch.compiler import is_compiling

from sparseconv import reference
from sparseconv.core.geometry import Geometry, Padding, PaddingMode
from sparseconv.core.pattern import KernelCSR, check_pattern_type
from sparseconv.functional.differentiable import Differentiable, Rest, is_transformed, save
from sparseconv.ops import gpu_plans
from sparseconv.ops.backends import Backend, extension, multiplies_blocks, resolve_backend
from sparseconv.ops.checks import check, refuse_types
from sparseconv.ops.flops import teach_counters
from sparseconv.ops.schemas import KERNELS, bias_grad

_CPU = torch.device("cpu")
T = TypeVar("T")
U = TypeVar("U")


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
    padding_mode: PaddingMode = "zeros",
    backend: Backend = "auto",
    relu: bool = False,
) -> Tensor:
    """Convolve with only the active weights.

    ``y[n, o, l] = bias[o] + sum over active (c, k) of w[o, c, k] * x[n, c, l*stride + k*dilation
    - left]``, as ``F.conv1d`` computes it with a weight that is zero outside ``pattern``. The
    result is differentiable in ``input``, ``values`` and ``bias``, to any order.

    NaN and infinity propagate only through active weights. A weight that is not finite also
    multiplies the zeros beyond the ends of a series, in padding and in gradients, and yields NaN
    there.

    Args:
        input: ``(N, C_in, L_in)`` or ``(C_in, L_in)``, with any strides; float32, float64, bfloat16
            or float16. The half types accumulate in float32.
        values: ``(nnz,)``, the active weights in the pattern's CSR order, in the dtype of
            ``input``.
        pattern: the active weights, of shape ``(C_out, C_in // groups, K)``.
        bias: ``(C_out,)`` or None.
        stride, dilation, groups: as in ``F.conv1d``.
        padding: as in ``F.conv1d``, or a pair ``(left, right)`` in time steps.
        padding_mode: ``"zeros"``, ``"replicate"``, ``"reflect"`` or ``"circular"``.
        backend: ``"auto"``, ``"cpp"`` (CPU kernels), ``"cuda"``, ``"triton"`` or ``"reference"``
            (dense). Except in ONNX export, a backend requested by name is never replaced: it runs
            or raises an error.
        relu: replace negative outputs with 0 before they are stored. Outputs and gradients are
            bit-identical to those with ``F.relu``, except that -0 becomes 0 in half types.

    Returns:
        ``(N, C_out, L_out)`` or ``(C_out, L_out)``.

    Raises:
        TypeError, ValueError: wrong types or dtypes; inconsistent shapes, devices or options.
            Except for types, they are also RuntimeErrors, as those of ``F.conv1d`` are.
        RuntimeError: the requested backend cannot run here.

    Example:
        >>> import torch, sparseconv as sc
        >>> pattern = sc.KernelCSR.from_mask(torch.tensor([[[True, False, True]]]))
        >>> sc.sparse_conv1d(torch.arange(5.0).view(1, 1, 5), torch.tensor([1.0, -1.0]), pattern)
        tensor([[[-2., -2., -2.]]])
    """
    crow, col = indices_of(pattern, input)
    geometry = Geometry.of(
        pattern._shape, stride, padding, dilation, groups, padding_mode, block=pattern._block
    )
    return sparse_conv1d_resolved(input, values, crow, col, bias, geometry, backend, relu)


def indices_of(pattern: KernelCSR, input: object) -> tuple[Tensor, Tensor]:
    """Check that ``pattern`` is one, and return its index tensors on the device of ``input``."""
    check_pattern_type(pattern)
    return pattern.on(input.device if isinstance(input, Tensor) else _CPU)


def sparse_conv1d_resolved(
    input: Tensor,
    values: Tensor,
    crow_indices: Tensor,
    col_indices: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    backend: str,
    relu: bool = False,
) -> Tensor:
    """Compute ``sparse_conv1d`` with the index tensors of a pattern and a resolved geometry."""
    if not (
        isinstance(input, Tensor)
        and isinstance(values, Tensor)
        and (bias is None or isinstance(bias, Tensor))
    ):
        refuse_types(input, values, bias)
    device = input.device
    if not is_compiling() and resolve_backend(backend, device) == "cpp" and extension is not None:
        plain: Tensor | None = extension.plain_conv(
            input, values, bias, crow_indices, col_indices, geometry, relu
        )
        if plain is not None:
            return plain
    # The check for any device comes first, because it takes a third of the time.
    if torch._C._is_any_autocast_enabled() and torch.is_autocast_enabled(device.type):
        input, values, bias = as_autocast(input, values, bias)
    x = input.unsqueeze(0) if input.dim() == 2 else input
    pays = device.type == "cuda" and (
        # A prototype of the block kernels was the fastest at each length. These are not timed yet.
        not (gpu_plans.tile_of(geometry) and multiplies_blocks(x.dtype, device))
        and gpu_plans.cuda_pays(x.dtype, col_indices.shape[0], geometry)
    )
    name = "reference" if leaves_torch() else resolve_backend(backend, device, pays)
    if name == "reference" or not is_compiling():  # else the op's shape function checks
        check(input, values, col_indices, bias, geometry)
    if name == "reference":
        pattern = reference.Indices(crow_indices, col_indices, geometry.shape)
        y = reference.conv1d_dense(x, values, pattern, bias, geometry)
        y = y.relu() if relu else y
    else:
        y = convolve(x, values, bias, crow_indices, col_indices, geometry[:], relu, name)
    return y if x is input else y.squeeze(0)


def convolve(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    crow_indices: Tensor,
    col_indices: Tensor,
    numbers: Sequence[int],
    relu: bool,
    backend: str,
) -> Tensor:
    """Compute ``sparse_conv1d`` with a backend's op, differentiable to any order.

    ``x`` is ``(N, C_in, L_in)``, ``numbers`` is a ``Geometry``, and all arguments are valid.
    """
    _teach_counters()
    tensors = x, values, bias, crow_indices, col_indices
    if is_transformed():
        return _Fprop.call(*tensors, (numbers, relu, backend))
    y: Tensor = KERNELS[backend].fprop(*tensors, numbers, relu)
    return y  # csrc/autograd/conv.cpp computes its gradients


def transpose(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    crow_indices: Tensor,
    col_indices: Tensor,
    numbers: Sequence[int],
    length: int,
    backend: str,
) -> Tensor:
    """Compute a transposed convolution, whose output has this length, as ``convolve`` does."""
    _teach_counters()
    indices = crow_indices, col_indices
    if is_transformed():
        return _Gradient.call(x, values, bias, *indices, ("dgrad", numbers, length, backend))
    y: Tensor = KERNELS[backend].dgrad(x, values, *indices, numbers, length, bias)
    return y


def _teach_counters() -> None:
    if not is_compiling() and torch._C._len_torch_dispatch_stack():
        teach_counters()


def leaves_torch() -> bool:
    """Return whether torch is exporting a graph to ONNX, whose runtimes lack the kernels."""
    return (is_compiling() or _is_tracing()) and torch.onnx.is_in_onnx_export()


def as_autocast(*tensors: Tensor | None) -> tuple[Any, ...]:
    """Cast tensors as autocast does for ``F.conv1d``: all except float64."""
    return tuple(
        t
        if t is None or t.dtype == torch.float64
        else t.to(torch.get_autocast_dtype(t.device.type))
        for t in tensors
    )


# The convolution is linear in the input and in the values, so its gradients of every order are the
# same three functions. Their arguments are two tensors (and a bias), crow_indices, col_indices and
# a tuple of all others.
class _Fprop(Differentiable):
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
        dy = _Fprop.call(dx, values, None, *rest) + _Fprop.call(x, dvalues, dbias, *rest)
        return dy if y is None else torch.ops.aten.threshold_backward(dy, y, 0)


class _Gradient(Differentiable):
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
            _Fprop.call(x, values, None, crow, col, again) if need_grad else None,
            _Gradient.call(grad, found, None, crow, col, turned) if need_factor else None,
            _bias_gradient(found) if any(others) else None,
            *(None, None, None),
        )

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        (of_grad, of_factor, of_bias, *_), (grad, factor, *indices) = tangents, ctx.saved_tensors
        rest = *indices, ctx.rest
        moved = _Gradient.call(of_grad, factor, of_bias, *rest)
        return moved + _Gradient.call(grad, of_factor, None, *rest)


def _register_gradient(op: str, backend: str) -> None:
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, numbers, relu = inputs
        _Fprop.setup_context(ctx, (*tensors, Rest((numbers, relu, backend))), output)

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *_Fprop.backward(ctx, grad), None

    torch.library.register_autograd(f"sparseconv::{op}", backward, setup_context=setup_context)


def _register_gradient_of_dgrad(op: str, backend: str) -> None:
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        grad, values, crow, col, numbers, length, bias = inputs
        rest = Rest(("dgrad", numbers, length, backend))
        _Gradient.setup_context(ctx, (grad, values, bias, crow, col, rest), output)

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        of_grad, of_values, of_bias, *_ = _Gradient.backward(ctx, grad)
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
    _teach_counters()
    of_output, input = (x, grad) if transposed else (grad, x)
    # The length is read from the tensor: a compiler treats numbers in the context as constants.
    how, indices = (tuple(numbers), input.shape[2], backend), (crow, col)

    def of_parameters() -> tuple[Tensor | None, Tensor | None]:
        return (
            _Gradient.call(of_output, input, None, *indices, ("wgrad", *how))
            if needed[1]
            else None,
            _bias_gradient(grad) if needed[2] else None,
        )

    def of_input() -> Tensor | None:
        if not needed[0]:
            return None
        if transposed:
            return _Fprop.call(grad, values, None, *indices, (tuple(numbers), False, backend))
        return _Gradient.call(grad, values, None, *indices, ("dgrad", *how))

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
