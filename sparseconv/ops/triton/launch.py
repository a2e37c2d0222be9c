"""From tensors to grids: the implementations of the ops ``sparseconv::triton_*``."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sparseconv.core.geometry import Geometry
from sparseconv.ops import gpu_plans
from sparseconv.ops.padding import folds_padding
from sparseconv.ops.triton import kernels

# Sizes of programs, all fixed: nothing is tuned at run time. Each thread has 16 accumulators.
# correlate: positions, and how many of them in a row at least
_TILE, _ALONG = 1024, 64
_WGRAD_TILE, _WGRAD_ALONG = 2048, 32  # wgrad: positions times entries
_MOST_ALONG = 256
_UNROLL = 4  # wgrad's positions in a row have one address
_LEAST_TILES, _MOST_CHUNKS = 16, 64  # of wgrad's positions: partial sums, added in a second pass
_MOST = 2**31 - 1  # positions


def _expect(name: str, x: Tensor, shape: tuple[int, ...], like: Tensor) -> None:
    """Refuse a tensor of another shape, dtype or device than the kernels would read."""
    if x.shape != shape or x.dtype != like.dtype or x.device != like.device:
        raise ValueError(
            f"expected {name} of shape {shape}, {like.dtype} on {like.device}, but got "
            f"{tuple(x.shape)}, {x.dtype} on {x.device}"
        )


def _check_length(g: Geometry, length: int) -> None:
    """Refuse an input length that the options do not go with, or that 32 bits do not count."""
    g.check_length(length)
    if length + sum(g.padding) + _TILE * g.stride > _MOST:
        raise NotImplementedError(
            "the Triton kernels count positions in 32 bits: expected length + padding + "
            f"{_TILE} * stride below 2**31, but got length {length}, padding {g.padding}, stride "
            f"{g.stride}; use backend='reference'"
        )


def _tile(positions: int, along: int, batch: int, length: int) -> tuple[int, int]:
    """Split a program's positions over batch and series: ``(BN, BL)``, powers of two.

    The batch first: a longer run of neighbours wastes more at the ends of the series.
    """
    bn = min(positions // along, _power_of_two(batch))
    return bn, min(positions // bn, _MOST_ALONG, max(16, _power_of_two(length)))


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()


def _programs(*sizes_and_tiles: int) -> int:
    """Say how many programs cover all sizes: each is followed by that of its tile."""
    pairs = zip(sizes_and_tiles[::2], sizes_and_tiles[1::2], strict=True)
    return math.prod(-(-size // tile) for size, tile in pairs)


def _correlate(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    plan: tuple[Tensor, ...],
    out: Tensor,
    in_step: int,
    out_step: int,
    origin: int,
    lead: int,
    offsets: tuple[int, int],
    relu: bool,
    mode: str,
) -> Tensor:
    rows, entries, source, *_ = *plan, None
    batch, channels, out_length = out.shape
    per_phase = -(-out_length // out_step)
    if out.numel() == 0:
        return out
    bn, bl = _tile(_TILE, _ALONG, batch, per_phase)
    grid = rows.shape[0] * _programs(per_phase, bl, batch, bn)
    with torch.accelerator.device_index(x.device.index):
        kernels.correlate[(grid,)](
            out,
            x,
            values.contiguous(),
            None if bias is None else bias.contiguous(),
            rows,
            entries,
            source,
            values.shape[0],
            batch,
            channels,
            x.shape[1],
            x.shape[2],
            out_length,
            *x.stride(),
            in_step,
            out_step,
            origin,
            lead,
            *offsets,
            RELU=relu,
            MODE=mode,
            BN=bn,
            BL=bl,
            num_warps=2,
            enable_fp_fusion=False,  # the kernels say where they fuse
        )
    return out


def fprop(
    input: Tensor,
    values: Tensor,
    bias: Tensor | None,
    crow_indices: Tensor,
    col_indices: Tensor,
    geometry: Sequence[int],
    relu: bool = False,
) -> Tensor:
    g = Geometry.from_numbers(geometry)
    shape, stride, padding, dilation, groups, padding_mode = g
    batch, _, length = input.shape
    _check_length(g, length)
    _expect("input", input, (batch, shape[1] * groups, length), input)
    _expect("values", values, tuple(col_indices.shape), input)
    if bias is not None:
        _expect("bias", bias, (shape[0],), input)
    return _correlate(
        input,
        values,
        bias,
        gpu_plans.triton_fprop(crow_indices, col_indices, g),
        input.new_empty((batch, shape[0], g.output_length(length))),
        in_step=stride,
        out_step=1,
        origin=-padding[0],
        lead=0,
        offsets=(0, (shape[2] - 1) * dilation),
        relu=relu,
        mode=padding_mode,
    )


@folds_padding
def dgrad(
    grad_output: Tensor,
    values: Tensor,
    crow_indices: Tensor,
    col_indices: Tensor,
    geometry: Sequence[int],
    input_length: int,
) -> Tensor:
    g = Geometry.from_numbers(geometry)
    shape, stride, padding, dilation, groups, _ = g
    batch, channels = grad_output.shape[0], shape[1] * groups
    _check_length(g, input_length)
    expected = (batch, shape[0], g.output_length(input_length))
    _expect("grad_output", grad_output, expected, grad_output)
    _expect("values", values, tuple(col_indices.shape), grad_output)
    return _correlate(
        grad_output,
        values,
        None,
        gpu_plans.triton_dgrad(crow_indices, col_indices, g),
        grad_output.new_empty((batch, channels, input_length)),
        in_step=1,
        out_step=stride,
        origin=0,
        lead=padding[0],
        offsets=(-((shape[2] - 1) * dilation // stride), 0),
        relu=False,
        mode="zeros",
    )


def wgrad(
    grad_output: Tensor,
    input: Tensor,
    crow_indices: Tensor,
    col_indices: Tensor,
    geometry: Sequence[int],
) -> Tensor:
    g = Geometry.from_numbers(geometry)
    shape, stride, padding, dilation, groups, padding_mode = g
    batch, _, length = input.shape
    _check_length(g, length)
    out_length, nnz = g.output_length(length), col_indices.shape[0]
    _expect("input", input, (batch, shape[1] * groups, length), input)
    _expect("grad_output", grad_output, (batch, shape[0], out_length), input)
    (blocks,) = gpu_plans.triton_wgrad(crow_indices, col_indices, g)
    entries = gpu_plans.triton_fprop(crow_indices, col_indices, g).entries
    if nnz == 0 or batch == 0:
        return input.new_zeros(nnz)
    size = gpu_plans.block_size(shape)
    bn, bl = _tile(min(_WGRAD_TILE // size, _TILE), _WGRAD_ALONG, batch, out_length)
    unroll = min(_UNROLL, _power_of_two(-(-out_length // bl)))
    tiles = _programs(out_length, bl * unroll, batch, bn)
    each = _programs(tiles, min(_MOST_CHUNKS, _programs(tiles, _LEAST_TILES)))
    chunks = _programs(tiles, each)
    wide = torch.promote_types(input.dtype, torch.float32)
    out = input.new_empty((chunks, nnz), dtype=wide if chunks > 1 else input.dtype)
    with torch.accelerator.device_index(input.device.index):
        kernels.wgrad[(blocks.shape[0], chunks)](
            out,
            grad_output,
            input,
            blocks,
            entries,
            nnz,
            batch,
            *input.shape[1:],
            *grad_output.shape[1:],
            *grad_output.stride(),
            *input.stride(),
            stride,
            padding[0],
            (shape[2] - 1) * dilation,
            each,
            MODE=padding_mode,
            BE=size,
            BN=bn,
            BL=bl,
            UNROLL=unroll,
            num_warps=4,
            enable_fp_fusion=False,
        )
    return out[0] if chunks == 1 else out.sum(0).to(input.dtype)
