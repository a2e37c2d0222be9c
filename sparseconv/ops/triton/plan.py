"""What the kernels read instead of the pattern; made once for each pattern and device.

Every size here follows from the pattern's shape and ``nnz`` alone, so a pattern that changes at
constant ``nnz`` changes no grid and no address.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sparseconv.core.geometry import Geometry
from sparseconv.core.pattern import KernelCSR

BLOCK = 16  # entries that a program of wgrad takes


class Correlation(NamedTuple):
    """The rows of one correlation, heaviest first, and their entries (see ``correlate``)."""

    rows: Tensor  # int32 (rows, 3)
    entries: Tensor  # int64 (nnz,)


class Transposed(NamedTuple):
    """dgrad's correlation: a row is an input channel in one stride phase."""

    rows: Tensor
    entries: Tensor
    source: Tensor  # int32 (nnz,): where each entry's weight stands in `values`


def block_size(shape: tuple[int, int, int]) -> int:
    """Entries in one block of wgrad: a power of two, and no more than a channel can have."""
    most = shape[1] * shape[2]
    return min(BLOCK, 1 << (most - 1).bit_length())


def block_count(shape: tuple[int, int, int], nnz: int) -> int:
    """Blocks of wgrad that the least favourable pattern with this ``nnz`` needs."""
    return nnz // block_size(shape) + min(shape[0], nnz)


def fprop(pattern: KernelCSR, geometry: Geometry, device: torch.device) -> Correlation:
    return pattern.cached(_triton_fprop, geometry.dilation, geometry.groups, device)


def _triton_fprop(
    pattern: KernelCSR, dilation: int, groups: int, device: torch.device
) -> Correlation:
    _, channel, tap = _weights(pattern, groups)
    bounds = pattern.crow_indices[:: pattern.shape[1]]
    return Correlation(_row_swizzle(bounds).to(device), _packed(channel, tap * dilation).to(device))


def dgrad(pattern: KernelCSR, geometry: Geometry, device: torch.device) -> Transposed:
    stride, dilation, groups = geometry.stride, geometry.dilation, geometry.groups
    return pattern.cached(_triton_dgrad, stride, dilation, groups, device)


def _triton_dgrad(
    pattern: KernelCSR, stride: int, dilation: int, groups: int, device: torch.device
) -> Transposed:
    out_channel, channel, tap = _weights(pattern, groups)
    row = channel * stride + tap * dilation % stride
    order = row.argsort(stable=True)
    rows = torch.arange(pattern.shape[1] * groups * stride + 1, device="cpu")
    bounds = torch.searchsorted(row[order], rows)
    entries = _packed(out_channel, -(tap * dilation // stride))[order]
    return Transposed(
        _row_swizzle(bounds).to(device), entries.to(device), order.to(device, torch.int32)
    )


def wgrad(pattern: KernelCSR, device: torch.device) -> Tensor:
    """Return the blocks ``(blocks, 3)``: entries of one output channel that a program takes."""
    return pattern.cached(_triton_wgrad, device)


def _triton_wgrad(pattern: KernelCSR, device: torch.device) -> Tensor:
    size = block_size(pattern.shape)
    bounds = pattern.crow_indices[:: pattern.shape[1]].long()
    blocks = ((bounds.diff() + size - 1) // size).cumsum(0)
    # Those too many are empty.
    block = torch.arange(block_count(pattern.shape, pattern.nnz), device="cpu")
    channel = torch.searchsorted(blocks, block, right=True).clamp(max=pattern.shape[0] - 1)
    before = torch.where(channel > 0, blocks[channel - 1], 0)
    begin = bounds[channel] + (block - before) * size
    end = torch.minimum(begin + size, bounds[channel + 1])
    return torch.stack((channel, begin, end), 1).to(device, torch.int32)


def _weights(pattern: KernelCSR, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return output channel, input channel and tap of every active weight, in CSR order."""
    out_channels, group_channels, kernel_size = pattern.shape
    kernel, tap = (
        pattern.positions().div(kernel_size, rounding_mode="floor"),
        pattern.col_indices.long(),
    )
    out_channel = kernel // group_channels
    group = out_channel // (out_channels // groups)
    return out_channel, group * group_channels + kernel % group_channels, tap


def _row_swizzle(bounds: Tensor) -> Tensor:
    """Return ``(rows, 3)``: row, first entry, past the last; heaviest first, as in Sputnik."""
    order = bounds.diff().argsort(descending=True, stable=True)
    return torch.stack((order, bounds[order], bounds[order + 1]), 1).to(torch.int32)


def _packed(channel: Tensor, offset: Tensor) -> Tensor:
    """One load instead of two: loads are what limits the kernels."""
    return channel << 32 | offset & 0xFFFFFFFF
