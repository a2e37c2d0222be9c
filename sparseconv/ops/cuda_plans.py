"""The index work for the CUDA kernels, done once per pattern: see csrc/cuda/problem.h.

Plain index operations of torch, on the CPU, where patterns live.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparseconv.core.pattern import KernelCSR


def fprop_rows(pattern: KernelCSR, dilation: int) -> Tensor:
    """``(nnz,)`` int32: how far into the window of an output each active weight reads.

    Example:
        >>> fprop_rows(KernelCSR.full((1, 1, 3)), dilation=2)
        tensor([0, 2, 4], dtype=torch.int32)
    """
    _check_reach(pattern, dilation)
    return pattern.col_indices * dilation


def dgrad_plan(
    pattern: KernelCSR, stride: int, dilation: int, groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Transpose the pattern, one phase of the stride after the other; all int32.

    Returns:
        Pointers ``(stride * n_kernels + 1,)``, by phase, input channel and output channel of its
        group; of each entry the row in the window ``(nnz,)``, ascending within a kernel; and its
        place in ``values`` ``(nnz,)``.

    Example:
        >>> pointers, rows, source = dgrad_plan(KernelCSR.full((1, 1, 3)), 2, 1, 1)
        >>> pointers.tolist(), rows.tolist(), source.tolist()
        ([0, 2, 3], [0, 1, 0], [2, 0, 1])
    """
    _check_reach(pattern, dilation)
    out_channels, group_channels, kernel_size = pattern.shape
    group_rows, n_kernels = out_channels // groups, out_channels * group_channels
    crow = pattern.crow_indices.long()
    kernel = torch.repeat_interleave(torch.arange(n_kernels), crow.diff())
    output = kernel // group_channels
    channel = output // group_rows * group_channels + kernel % group_channels
    position = pattern.col_indices.long() * dilation
    phase = position % stride
    span = (dilation * (kernel_size - 1) - phase) // stride
    row = span - position // stride
    target = (phase * group_channels * groups + channel) * group_rows + output % group_rows
    order = torch.argsort(target * (dilation * (kernel_size - 1) // stride + 1) + row)
    counts = torch.bincount(target, minlength=stride * n_kernels)
    pointers = torch.zeros(stride * n_kernels + 1, dtype=torch.int32)
    pointers[1:] = counts.cumsum(0)
    return pointers, row[order].int(), order.int()


def _check_reach(pattern: KernelCSR, dilation: int) -> None:
    reach = dilation * (pattern.shape[2] - 1) + 1
    if reach >= 2**31:
        raise ValueError(
            f"dilation * (kernel_size - 1) + 1 must be below 2**31 on CUDA, but got {reach}; "
            "use backend='reference'"
        )
