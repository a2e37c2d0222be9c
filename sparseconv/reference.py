"""Compute the convolution with the dense weight, as a reference.

This module shares no arithmetic with the kernels, so it cannot share their bugs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sparseconv.core.geometry import PaddingMode
from sparseconv.core.pattern import KernelCSR
from sparseconv.core.tracing import outside_tracing, traced_tensor


def dense_weight(values: Tensor, pattern: KernelCSR) -> Tensor:
    """Spread ``values (nnz,)`` into ``(C_out, C_in // groups, K)``, with zeros where inactive.

    The result is differentiable in ``values``. Raise ValueError unless there is one value per
    active weight.

    Example:
        >>> pattern = KernelCSR.from_positions(torch.tensor([1]), (1, 1, 3))
        >>> dense_weight(torch.tensor([5.0]), pattern)
        tensor([[[0., 5., 0.]]])
    """
    if values.shape != (pattern.nnz,):  # scatter would leave out the others
        raise ValueError(f"values must have shape ({pattern.nnz},), but got {tuple(values.shape)}")
    if torch.onnx.is_in_onnx_export():  # a constant: tools for ONNX look for weights, not for sums
        known = traced_tensor(values)
        if known is not None:
            with outside_tracing():
                return _spread(known.detach(), pattern)
    return _spread(values, pattern)


def _spread(values: Tensor, pattern: KernelCSR) -> Tensor:
    # Cached on a GPU: a CUDA graph cannot read memory of the CPU.
    on_gpu = values.is_cuda
    positions = pattern.cached(_positions_on, values.device) if on_gpu else pattern.positions()
    return values.new_zeros(pattern.numel).scatter(0, positions, values).view(pattern.shape)


def _positions_on(pattern: KernelCSR, device: torch.device) -> Tensor:
    return pattern.positions().to(device)


def conv1d_dense(
    input: Tensor,
    values: Tensor,
    pattern: KernelCSR,
    bias: Tensor | None,
    stride: int,
    padding: tuple[int, int],
    dilation: int,
    groups: int,
    padding_mode: PaddingMode,
) -> Tensor:
    """Convolve ``(N, C_in, L_in)`` with the dense weight: ``F.pad``, then ``F.conv1d``.

    Run on any device, with gradients of any order. Half types are computed in float32,
    because torch's CPU convolution sums their gradients in half precision. ``padding`` is
    ``(left, right)``, in time steps.

    Example:
        >>> pattern = KernelCSR.from_mask(torch.tensor([[[True, False, True]]]))
        >>> x, values = torch.arange(5.0).view(1, 1, 5), torch.tensor([1.0, -1.0])
        >>> conv1d_dense(x, values, pattern, None, 1, (0, 0), 1, 1, "zeros")
        tensor([[[-2., -2., -2.]]])
    """
    half = input.dtype in (torch.bfloat16, torch.float16)
    wide = torch.float32 if half else input.dtype
    x = pad(input.to(wide), padding, padding_mode)
    weight = dense_weight(values, pattern).to(wide)
    bias = None if bias is None else bias.to(wide)
    return F.conv1d(x, weight, bias, stride, 0, dilation, groups).to(input.dtype)


def pad(x: Tensor, padding: tuple[int, ...], mode: str) -> Tensor:
    """Pad like ``F.pad``, with the modes of ``nn.Conv1d``; do not copy if the padding is zero."""
    if not any(padding):
        return x
    return F.pad(x, padding, "constant" if mode == "zeros" else mode)
