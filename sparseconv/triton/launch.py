"""From tensors to grids: the implementations of the ops ``sparseconv::triton_*``."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sparseconv import _ops
from sparseconv.triton import kernels
from sparseconv.triton.plan import block_size

# Sizes of programs, all fixed: nothing is tuned at run time. Each thread has 16 accumulators.
_TILE, _ALONG = 1024, 64  # correlate and fold: positions, and how many of them in a row at least
_WGRAD_TILE, _WGRAD_ALONG = 2048, 32  # wgrad: positions times entries
_MOST_ALONG = 256
_UNROLL = 4  # wgrad's positions in a row have one address
_LEAST_TILES, _MOST_CHUNKS = 16, 64  # of wgrad's positions: partial sums, added in a second pass


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


def _check_length(length: int, padding: Sequence[int], stride: int) -> None:
    # The last tile reaches beyond the end.
    if length + sum(padding) + _TILE * stride >= 2**31:
        raise NotImplementedError(
            "the Triton kernels count positions in 32 bits: expected length + padding + "
            f"{_TILE} * stride below 2**31, but got length {length}, padding "
            f"{tuple(padding)}, stride {stride}; use backend='reference'"
        )


def _correlate(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    rows: Tensor,
    entries: Tensor,
    source: Tensor | None,
    out: Tensor,
    in_step: int,
    out_step: int,
    origin: int,
    lead: int,
    offsets: tuple[int, int],
    relu: bool,
    mode: str,
) -> Tensor:
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
            batch,
            channels,
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
    rows: Tensor,
    shape: Sequence[int],
    stride: int,
    padding: Sequence[int],
    dilation: int,
    groups: int,
    padding_mode: str,
    relu: bool = False,
) -> Tensor:
    batch, _, length = input.shape
    _check_length(length, padding, stride)
    out_length = _ops.output_length(length, shape[2], stride, padding, dilation)
    return _correlate(
        input,
        values,
        bias,
        crow_indices,
        rows,
        None,
        input.new_empty((batch, shape[0], out_length)),
        in_step=stride,
        out_step=1,
        origin=-padding[0],
        lead=0,
        offsets=(0, (shape[2] - 1) * dilation),
        relu=relu,
        mode=padding_mode,
    )


def dgrad(
    grad_output: Tensor,
    values: Tensor,
    pointers: Tensor,
    rows: Tensor,
    index: Tensor,
    shape: Sequence[int],
    input_length: int,
    stride: int,
    padding: Sequence[int],
    dilation: int,
    groups: int,
    padding_mode: str,
) -> Tensor:
    batch, channels = grad_output.shape[0], shape[1] * groups
    left, right = padding
    _check_length(input_length, padding, stride)
    out = grad_output.new_empty((batch, channels, input_length))
    folded = padding_mode != "zeros" and left + right > 0
    wide = torch.promote_types(out.dtype, torch.float32)
    target = (
        out.new_empty((batch, channels, left + input_length + right), dtype=wide) if folded else out
    )
    _correlate(
        grad_output,
        values,
        None,
        pointers,
        rows,
        index,
        target,
        in_step=1,
        out_step=stride,
        origin=0,
        lead=0 if folded else left,
        offsets=(-((shape[2] - 1) * dilation // stride), 0),
        relu=False,
        mode="zeros",
    )
    if folded and out.numel() > 0:
        bn, bl = _tile(_TILE, _ALONG, batch * channels, input_length)
        grid = _programs(input_length, bl, batch * channels, bn)
        with torch.accelerator.device_index(out.device.index):
            kernels.fold[(grid,)](
                out,
                target,
                batch * channels,
                input_length,
                left,
                right,
                MODE=padding_mode,
                BN=bn,
                BL=bl,
                num_warps=4,
                enable_fp_fusion=False,
            )
    return out


def wgrad(
    grad_output: Tensor,
    input: Tensor,
    crow_indices: Tensor,
    rows: Tensor,
    shape: Sequence[int],
    stride: int,
    padding: Sequence[int],
    dilation: int,
    groups: int,
    padding_mode: str,
) -> Tensor:
    batch, _, out_length = grad_output.shape
    nnz = rows.shape[0]
    _check_length(input.shape[2], padding, stride)
    if nnz == 0 or batch * out_length == 0:
        return input.new_zeros(nnz)
    size = block_size((shape[0], shape[1], shape[2]))
    bn, bl = _tile(min(_WGRAD_TILE // size, _TILE), _WGRAD_ALONG, batch, out_length)
    unroll = min(_UNROLL, _power_of_two(-(-out_length // bl)))
    tiles = _programs(out_length, bl * unroll, batch, bn)
    each = _programs(tiles, min(_MOST_CHUNKS, _programs(tiles, _LEAST_TILES)))
    chunks = _programs(tiles, each)
    wide = torch.promote_types(input.dtype, torch.float32)
    out = input.new_empty((chunks, nnz), dtype=wide if chunks > 1 else input.dtype)
    with torch.accelerator.device_index(input.device.index):
        kernels.wgrad[(crow_indices.shape[0], chunks)](
            out,
            grad_output,
            input,
            crow_indices,
            rows,
            nnz,
            batch,
            input.shape[2],
            out_length,
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
