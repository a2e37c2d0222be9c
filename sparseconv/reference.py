"""Compute the convolution with the dense weight, as a reference.

This module shares no arithmetic with the kernels, so it cannot share their bugs.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from sparseconv.core.geometry import Geometry
from sparseconv.core.pattern import KernelCSR, positions_of
from sparseconv.core.tracing import outside_tracing


class Indices(NamedTuple):
    """Hold the index tensors of a pattern, with what ``dense_weight`` reads of a ``KernelCSR``."""

    crow: Tensor
    col: Tensor
    shape: tuple[int, int, int]

    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        return self.crow, self.col


def dense_weight(values: Tensor, pattern: KernelCSR | Indices) -> Tensor:
    """Spread ``values (nnz,)`` into ``(C_out, C_in // groups, K)``, with zeros where inactive.

    The result is differentiable in ``values``. Raise ValueError unless there is one value per
    active weight.

    Example:
        >>> pattern = KernelCSR.from_positions(torch.tensor([1]), (1, 1, 3))
        >>> dense_weight(torch.tensor([5.0]), pattern)
        tensor([[[0., 5., 0.]]])
    """
    crow, col = pattern.on(values.device)
    if values.shape != col.shape:  # scatter would leave out the others
        raise ValueError(
            f"values must have shape {tuple(col.shape)}, but got {tuple(values.shape)}"
        )
    if not torch.onnx.is_in_onnx_export():
        return _spread(values, positions_of(crow, col, pattern.shape), pattern.shape)
    # ONNX lacks the operations that compute positions, so its graph gets constants. Tools for ONNX
    # look for weights, not for sums.
    known, *arrays = (_traced(tensor) for tensor in (values, crow, col))
    with outside_tracing():
        crow, col = (cast(Tensor, array) for array in arrays)
        positions = positions_of(crow, col, pattern.shape)
        if known is not None:
            return _spread(known.detach(), positions, pattern.shape)
    return _spread(values, positions, pattern.shape)


def _spread(values: Tensor, positions: Tensor, shape: tuple[int, int, int]) -> Tensor:
    return values.new_zeros(math.prod(shape)).scatter(0, positions, values).view(shape)


def _traced(tensor: Tensor) -> Tensor | None:
    """Return the real tensor that a traced one represents, or None if the graph computes it.

    ``torch.export`` traces with fake tensors and records which real tensor each represents.
    """
    if not isinstance(tensor, FakeTensor):
        return None if torch.compiler.is_compiling() else tensor
    converter: Any = tensor.fake_mode.fake_tensor_converter.meta_converter
    with outside_tracing():
        for real, number in converter.describer.lookup_tensor.items():
            if converter.tensor_memo.get(number) is tensor:
                return cast(Tensor, real)
    return None


def conv1d_dense(
    input: Tensor,
    values: Tensor,
    pattern: KernelCSR | Indices,
    bias: Tensor | None,
    geometry: Geometry,
) -> Tensor:
    """Convolve ``(N, C_in, L_in)`` with the dense weight: ``F.pad``, then ``F.conv1d``.

    Run on any device, with gradients of any order. Half types are computed in float32,
    because torch's CPU convolution sums their gradients in half precision.

    Example:
        >>> pattern = KernelCSR.from_mask(torch.tensor([[[True, False, True]]]))
        >>> x, values = torch.arange(5.0).view(1, 1, 5), torch.tensor([1.0, -1.0])
        >>> geometry = Geometry.of(pattern.shape, 1, 0, 1, 1, "zeros")
        >>> conv1d_dense(x, values, pattern, None, geometry)
        tensor([[[-2., -2., -2.]]])
    """
    wide = torch.promote_types(input.dtype, torch.float32)
    x = pad(input.to(wide), geometry.padding, geometry.padding_mode)
    weight = dense_weight(values, pattern).to(wide)
    bias = None if bias is None else bias.to(wide)
    how = geometry.stride, 0, geometry.dilation, geometry.groups
    return F.conv1d(x, weight, bias, *how).to(input.dtype)


def conv_transpose1d_dense(
    input: Tensor,
    values: Tensor,
    pattern: KernelCSR | Indices,
    bias: Tensor | None,
    geometry: Geometry,
    output_padding: int,
) -> Tensor:
    """Compute ``F.conv_transpose1d`` of ``(N, C_in, L_in)`` with the dense weight.

    ``geometry`` is that of the transposed convolution. Half types are computed in float32.
    """
    wide = torch.promote_types(input.dtype, torch.float32)
    weight = dense_weight(values, pattern).to(wide)
    bias = None if bias is None else bias.to(wide)
    how = geometry.stride, geometry.left, output_padding, geometry.groups, geometry.dilation
    return F.conv_transpose1d(input.to(wide), weight, bias, *how).to(input.dtype)


def pad(x: Tensor, padding: tuple[int, ...], mode: str) -> Tensor:
    """Pad like ``F.pad``, with the modes of ``nn.Conv1d``; do not copy if the padding is zero."""
    if not any(padding):
        return x
    return F.pad(x, padding, "constant" if mode == "zeros" else mode)
