"""Check the arguments of ``sparse_conv1d`` and ``sparse_conv_transpose1d``, and run a backend."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C import _is_tracing
from torch.compiler import is_compiling, is_dynamo_compiling

from sparseconv import reference
from sparseconv.core.geometry import Geometry, Padding, PaddingMode
from sparseconv.core.pattern import KernelCSR
from sparseconv.functional.gradients import Fprop, Gradient, is_transformed
from sparseconv.ops import gpu_plans
from sparseconv.ops.backends import Backend, extension, multiplies_blocks, resolve_backend
from sparseconv.ops.checks import check, check_pattern_type, refuse_types
from sparseconv.ops.flops import teach_running_counters
from sparseconv.ops.schemas import KERNELS

_CPU = torch.device("cpu")


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


def sparse_conv_transpose1d(
    input: Tensor,
    values: Tensor,
    pattern: KernelCSR,
    bias: Tensor | None = None,
    stride: int | tuple[int] = 1,
    padding: int | tuple[int] = 0,
    output_padding: int | tuple[int] = 0,
    groups: int = 1,
    dilation: int | tuple[int] = 1,
    *,
    backend: Backend = "auto",
) -> Tensor:
    """Compute ``F.conv_transpose1d`` with only the active weights.

    The pattern is that of the weight of ``F.conv_transpose1d``. This is also the pattern of the
    convolution that is transposed, from ``C_out`` to ``C_in`` channels: the output is what
    ``sparse_conv1d`` would compute as the gradient of its input, with the same kernels. The result
    is differentiable in ``input``, ``values`` and ``bias``, to any order.

    Args:
        input: ``(N, C_in, L_in)`` or ``(C_in, L_in)``; dtypes are as in ``sparse_conv1d``.
        values: ``(nnz,)``, the active weights in the pattern's CSR order.
        pattern: the active weights, of shape ``(C_in, C_out // groups, K)``.
        bias: ``(C_out,)`` or None.
        stride, padding, output_padding, groups, dilation: as in ``F.conv_transpose1d``.
        backend: as in ``sparse_conv1d``.

    Returns:
        ``(N, C_out, L_out)`` or ``(C_out, L_out)``, with ``L_out = (L_in - 1) * stride - 2 *
        padding + dilation * (K - 1) + output_padding + 1``.

    Raises:
        TypeError, ValueError, RuntimeError: as in ``sparse_conv1d``.

    Example:
        >>> import torch, sparseconv as sc
        >>> pattern = sc.KernelCSR.from_mask(torch.tensor([[[True, False, True]]]))
        >>> x, values = torch.tensor([[[1.0, 2.0]]]), torch.tensor([1.0, -1.0])
        >>> sc.sparse_conv_transpose1d(x, values, pattern, stride=2)
        tensor([[[ 1.,  0.,  1.,  0., -2.]]])
    """
    indices = indices_of(pattern, input)
    how: Any = stride, padding, output_padding, groups, dilation
    geometry, extra = Geometry.of_transposed(pattern.shape, *how, block=pattern.block)
    return conv_transpose_resolved(input, values, *indices, bias, geometry, extra, backend)


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
    if extension is not None and not is_dynamo_compiling():
        plain: Tensor | None = extension.eager_conv(
            input, values, bias, crow_indices, col_indices, geometry, backend, relu
        )
        if plain is not None:
            return plain
    input, values, bias = _as_computed(input, values, bias)
    device, x = input.device, input.unsqueeze(0) if input.dim() == 2 else input
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
        teach_running_counters()
        tensors = x, values, bias, crow_indices, col_indices
        if is_transformed():
            y = Fprop.call(*tensors, (geometry[:], relu, name))
        else:  # csrc/autograd/conv.cpp computes its gradients
            y = KERNELS[name].fprop(*tensors, geometry[:], relu)
    return y if x is input else y.squeeze(0)


def conv_transpose_resolved(
    input: Tensor,
    values: Tensor,
    crow_indices: Tensor,
    col_indices: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    output_padding: int,
    backend: str,
) -> Tensor:
    """Compute ``sparse_conv_transpose1d`` with index tensors and a resolved geometry."""
    input, values, bias = _as_computed(input, values, bias)
    check(input, values, col_indices, bias, geometry, transposed=True)
    length = geometry.transposed_length(input.shape[-1], output_padding)
    x = input.unsqueeze(0) if input.dim() == 2 else input
    name = "reference" if leaves_torch() else resolve_backend(backend, input.device)
    if name == "reference" or 0 in (length, x.shape[2]):  # the kernels refuse empty series
        pattern = reference.Indices(crow_indices, col_indices, geometry.shape)
        y = reference.conv_transpose1d_dense(x, values, pattern, bias, geometry, output_padding)
    else:
        teach_running_counters()
        x, indices = fill(x, geometry.output_length(length)), (crow_indices, col_indices)
        if is_transformed():
            how = "dgrad", geometry[:], length, name
            y = Gradient.call(x, values, bias, *indices, how)
        else:
            y = KERNELS[name].dgrad(x, values, *indices, geometry[:], length, bias)
    return y if input.dim() == 3 else y.squeeze(0)


def fill(x: Tensor, length: int) -> Tensor:
    """Add zeros where the output padding, which may exceed the stride, contains whole steps."""
    missing = length - x.shape[-1]
    return F.pad(x, (0, missing)) if missing else x


def leaves_torch() -> bool:
    """Return whether torch is exporting a graph to ONNX, whose runtimes lack the kernels."""
    return (is_compiling() or _is_tracing()) and torch.onnx.is_in_onnx_export()


def _as_computed(
    input: Tensor, values: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the tensors in the dtype to compute in; reject other arguments."""
    tensors = [input, values] if bias is None else [input, values, bias]
    if not all(isinstance(tensor, Tensor) for tensor in tensors):
        refuse_types(input, values, bias)
    # The check for any device comes first, because it takes a third of the time.
    if torch._C._is_any_autocast_enabled() and torch.is_autocast_enabled(input.device.type):
        return as_autocast(input, values, bias)
    return input, values, bias


def as_autocast(*tensors: Tensor | None) -> tuple[Any, ...]:
    """Cast tensors as autocast does for ``F.conv1d``: all except float64."""
    return tuple(
        t
        if t is None or t.dtype == torch.float64
        else t.to(torch.get_autocast_dtype(t.device.type))
        for t in tensors
    )
