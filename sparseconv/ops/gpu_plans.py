"""What the GPU kernels read instead of the pattern; made once for each pattern and device.

Every size here follows from the pattern's shape and ``nnz`` alone, so a pattern that changes at
constant ``nnz`` changes no grid and no address. Both backends read the same rows, and add the
entries of a row in the same order. All of it is computed on that device: beside an H100 the CPU
took three times as long.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from sparseconv.core.geometry import Geometry
from sparseconv.core.pattern import KernelCSR

P = TypeVar("P")
BLOCK = 16  # entries that a program of Triton's wgrad takes
REACH = 40  # samples in a window of the CUDA kernels (csrc/cuda/problem.h)


class Correlation(NamedTuple):
    """The rows of one correlation, heaviest first, and their entries (see Triton's kernels)."""

    rows: Tensor  # int32 (rows, 3): row, first entry, past the last
    entries: Tensor  # int64 (nnz,): channel in the upper half, offset in the lower


class Transposed(NamedTuple):
    """dgrad's correlation: a row is an input channel in one stride phase."""

    rows: Tensor
    entries: Tensor
    source: Tensor  # int32 (nnz,): where each entry's weight stands in `values`


class Masks(NamedTuple):
    """What the CUDA kernels read of a correlation."""

    # int64 (rows, 1 + channels), heaviest first: the row, with its first entry in the upper half;
    # then the kernel of each channel, whose bit k is set where offset k has a weight.
    rows: Tensor
    slots: Tensor  # int32 (nnz,): (row * channels + channel) * REACH + offset


def block_size(shape: tuple[int, int, int]) -> int:
    """Entries in one block of wgrad: a power of two, and no more than a channel can have."""
    most = shape[1] * shape[2]
    return min(BLOCK, 1 << (most - 1).bit_length())


def block_count(shape: tuple[int, int, int], nnz: int) -> int:
    """Blocks of wgrad that the least favourable pattern with this ``nnz`` needs."""
    return nnz // block_size(shape) + min(shape[0], nnz)


def triton_fprop(pattern: KernelCSR, geometry: Geometry, device: torch.device) -> Correlation:
    return pattern.cached(_triton_fprop, geometry.dilation, geometry.groups, device)


def _triton_fprop(
    pattern: KernelCSR, dilation: int, groups: int, device: torch.device
) -> Correlation:
    _, channel, tap = _weights(pattern, groups, device)
    return _ready(Correlation(_rows(pattern, device), _packed(channel, tap * dilation)), device)


def triton_dgrad(pattern: KernelCSR, geometry: Geometry, device: torch.device) -> Transposed:
    stride, dilation, groups = geometry.stride, geometry.dilation, geometry.groups
    return pattern.cached(_triton_dgrad, stride, dilation, groups, device)


def _triton_dgrad(
    pattern: KernelCSR, stride: int, dilation: int, groups: int, device: torch.device
) -> Transposed:
    out_channel, channel, tap = _weights(pattern, groups, device)
    row = channel * stride + tap * dilation % stride
    rows, order = _sorted_rows(row, pattern.shape[1] * groups * stride)
    entries = _packed(out_channel, -(tap * dilation // stride))[order]
    return _ready(Transposed(rows, entries, order.int()), device)


def triton_wgrad(pattern: KernelCSR, device: torch.device) -> Tensor:
    """Return the blocks ``(blocks, 3)``: entries of one output channel that a program takes."""
    return pattern.cached(_triton_wgrad, device)


def _triton_wgrad(pattern: KernelCSR, device: torch.device) -> Tensor:
    size = block_size(pattern.shape)
    bounds = pattern.crow_indices[:: pattern.shape[1]].to(device, torch.int64)
    blocks = ((bounds.diff() + size - 1) // size).cumsum(0)
    # As many as any pattern with this nnz may need: those left over are empty.
    block = torch.arange(block_count(pattern.shape, pattern.nnz), device=device)
    channel = torch.searchsorted(blocks, block, right=True).clamp(max=pattern.shape[0] - 1)
    before = torch.where(channel > 0, blocks[channel - 1], 0)
    begin = bounds[channel] + (block - before) * size
    end = torch.minimum(begin + size, bounds[channel + 1])
    return _ready(torch.stack((channel, begin, end), 1).int(), device)


def cuda_computes(geometry: Geometry) -> bool:
    """Whether there are CUDA kernels for it, in float32 or a half type."""
    (out_channels, channels, kernel_size), stride, _, dilation, groups, _ = geometry
    return (
        stride == groups == 1
        and (kernel_size - 1) * dilation < REACH
        and out_channels * channels * REACH < 2**31
    )


def cuda_pays(dtype: torch.dtype, pattern: KernelCSR, geometry: Geometry) -> bool:
    """Whether "auto" takes the CUDA kernels instead of Triton's.

    They share each sample among the active weights of a kernel, so the more of these the better.
    With one weight a kernel all three computations together took 0.63 to 0.99 of Triton's time on
    an H100, with half a weight 1.02 to 1.51 of it (benchmarks/results/gpu.json, part "density":
    three shapes, 64 to 2048 samples). The batch and the length decide nothing, or bits would
    depend on them.
    """
    return (
        dtype == torch.float32
        and cuda_computes(geometry)
        and pattern.nnz >= pattern.shape[0] * pattern.shape[1]
    )


def cuda_fprop(pattern: KernelCSR, geometry: Geometry, device: torch.device) -> Masks:
    """The plan of fprop and of wgrad.

    Raises:
        NotImplementedError: the CUDA kernels do not compute this geometry.
    """
    _check_cuda(geometry)
    return pattern.cached(_cuda_fprop, geometry.dilation, device)


def _cuda_fprop(pattern: KernelCSR, dilation: int, device: torch.device) -> Masks:
    out_channel, channel, tap = _weights(pattern, 1, device)
    swizzled = _rows(pattern, device)
    masks = _masks(swizzled, out_channel, channel, tap * dilation, pattern.shape[1])
    return _ready(masks, device)


def cuda_dgrad(pattern: KernelCSR, geometry: Geometry, device: torch.device) -> Masks:
    """The plan of dgrad, whose rows are input channels; raises as ``cuda_fprop`` does."""
    _check_cuda(geometry)
    return pattern.cached(_cuda_dgrad, geometry.dilation, device)


def _cuda_dgrad(pattern: KernelCSR, dilation: int, device: torch.device) -> Masks:
    out_channel, channel, tap = _weights(pattern, 1, device)
    out_channels, channels, _ = pattern.shape
    # Not bincount, which waits for the GPU.
    counts = channel.new_zeros(channels).scatter_add_(0, channel, torch.ones_like(channel))
    swizzled = _heaviest_first(torch.nn.functional.pad(counts.cumsum(0), (1, 0)))
    return _ready(_masks(swizzled, channel, out_channel, tap * dilation, out_channels), device)


def _check_cuda(geometry: Geometry) -> None:
    if not cuda_computes(geometry):
        raise NotImplementedError(
            "the CUDA kernels compute convolutions of stride 1 in one group, with dilation * "
            f"(kernel_size - 1) < {REACH} and less than 2**31 / {REACH} kernels, but got {geometry}"
            "; use backend='auto' or 'triton'"
        )


def _ready(plan: P, device: torch.device) -> P:
    """The plan, computed: any stream may read it from here on."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
    return plan


def _weights(
    pattern: KernelCSR, groups: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Return output channel, input channel and tap of every active weight, in CSR order."""
    out_channels, group_channels, _ = pattern.shape
    per_kernel = pattern.crow_indices.to(device).diff()
    kernel = torch.arange(len(per_kernel), device=device).repeat_interleave(
        per_kernel, output_size=pattern.nnz
    )
    out_channel = kernel // group_channels
    group = out_channel // (out_channels // groups)
    tap = pattern.col_indices.to(device, torch.int64)
    return out_channel, group * group_channels + kernel % group_channels, tap


def _rows(pattern: KernelCSR, device: torch.device) -> Tensor:
    """Return the output channels' ``(rows, 3)``: row, first entry, past the last."""
    return _heaviest_first(pattern.crow_indices[:: pattern.shape[1]].to(device))


def _sorted_rows(row: Tensor, n_rows: int) -> tuple[Tensor, Tensor]:
    """Sort the entries by row: the rows ``(n_rows, 3)``, and where the sorted entries were."""
    order = row.argsort(stable=True)
    bounds = torch.searchsorted(row[order], torch.arange(n_rows + 1, device=row.device))
    return _heaviest_first(bounds), order


def _heaviest_first(bounds: Tensor) -> Tensor:
    order = bounds.diff().argsort(descending=True, stable=True)  # Sputnik's row swizzle
    return torch.stack((order, bounds[order], bounds[order + 1]), 1).to(torch.int32)


def _packed(channel: Tensor, offset: Tensor) -> Tensor:
    """One load instead of two: loads are what limits Triton's kernels."""
    return channel << 32 | offset & 0xFFFFFFFF


def _masks(rows: Tensor, row: Tensor, channel: Tensor, offset: Tensor, channels: int) -> Masks:
    """Of swizzled rows, and of the row, channel and offset of every weight."""
    kernel = row * channels + channel
    masks = torch.zeros(len(rows) * channels, dtype=torch.int64, device=row.device)
    masks.scatter_add_(0, kernel, torch.ones_like(offset) << offset)
    number, begin, _ = rows.long().unbind(1)
    records = (number | begin << 32)[:, None], masks.view(-1, channels)[number]
    return Masks(torch.cat(records, 1), (kernel * REACH + offset).int())
