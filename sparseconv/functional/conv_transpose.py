"""Check the arguments of ``sparse_conv_transpose1d``, and compute it with dgrad's kernels."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sparseconv import reference
from sparseconv.core.geometry import Geometry
from sparseconv.core.pattern import KernelCSR
from sparseconv.functional.conv import as_autocast, indices_of, leaves_torch, transpose
from sparseconv.ops.backends import Backend, resolve_backend
from sparseconv.ops.checks import check, refuse_types


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
    tensors = [input, values] if bias is None else [input, values, bias]
    if not all(isinstance(tensor, Tensor) for tensor in tensors):
        refuse_types(input, values, bias)
    device = input.device
    if torch._C._is_any_autocast_enabled() and torch.is_autocast_enabled(device.type):
        input, values, bias = as_autocast(input, values, bias)
    check(input, values, col_indices, bias, geometry, transposed=True)
    length = geometry.transposed_length(input.shape[-1], output_padding)
    x = input.unsqueeze(0) if input.dim() == 2 else input
    name = "reference" if leaves_torch() else resolve_backend(backend, device)
    if name == "reference" or 0 in (length, x.shape[2]):  # the kernels refuse empty series
        pattern = reference.Indices(crow_indices, col_indices, geometry.shape)
        y = reference.conv_transpose1d_dense(x, values, pattern, bias, geometry, output_padding)
    else:
        x = fill(x, geometry.output_length(length))
        indices = crow_indices, col_indices
        y = transpose(x, values, bias, *indices, geometry[:], length, name)
    return y if input.dim() == 3 else y.squeeze(0)


def fill(x: Tensor, length: int) -> Tensor:
    """Add zeros where the output padding, which may exceed the stride, contains whole steps."""
    missing = length - x.shape[-1]
    return F.pad(x, (0, missing)) if missing else x
