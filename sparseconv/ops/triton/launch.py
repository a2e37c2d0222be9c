"""Implement the ops ``sparseconv::triton_*``: choose plans and grids, and launch kernels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparseconv.core.geometry import Geometry
from sparseconv.ops import gpu_plans
from sparseconv.ops.backends import multiplies_blocks
from sparseconv.ops.checks import check
from sparseconv.ops.gpu_plans import Tile, power_of_two
from sparseconv.ops.padding import folds_padding
from sparseconv.ops.triton import block_kernels, kernels

# Sizes of programs, all fixed: nothing is tuned at run time. Each thread has 16 accumulators.
# correlate: positions, and the least number of consecutive ones
_TILE, _ALONG = 1024, 64
_WGRAD_TILE, _WGRAD_ALONG = 2048, 32  # wgrad: positions times entries
_MOST_ALONG = 256
_UNROLL = 4  # steps of wgrad that share an address computation
_LEAST_TILES, _MOST_CHUNKS = 16, 64  # wgrad's tiles per chunk; a second pass adds the chunks
# For blocks: positions, warps and steps in flight of fprop and dgrad, on short and on long series,
# and of wgrad. They were the best for a prototype on an H200; these kernels are not timed yet.
_SHORT, _BLOCKS_SHORT, _BLOCKS_LONG, _BLOCKS_WGRAD = 512, (64, 2, 3), (128, 4, 5), (64, 4, 3)
_BLOCKS_LEAST_TILES, _BLOCKS_MOST_CHUNKS = 3, 32
_SHARED = 96 * 1024  # bytes of shared memory that every GPU with TF32 has
_MOST = 2**31 - 1  # positions that 32 bits count

Options = dict[str, Any]
Pattern = tuple[Tensor, Tensor, Geometry]


def _expect(name: str, x: Tensor, shape: tuple[int, ...], like: Tensor) -> None:
    """Reject a tensor with the wrong shape, dtype or device."""
    if x.shape != shape or x.dtype != like.dtype or x.device != like.device:
        raise ValueError(
            f"expected {name} of shape {shape}, {like.dtype} on {like.device}, but got "
            f"{tuple(x.shape)}, {x.dtype} on {x.device}"
        )


def _check_positions(g: Geometry, length: int) -> None:
    """Reject an input length that is too large for 32 bits."""
    if length + sum(g.padding) + _TILE * g.stride > _MOST:
        raise NotImplementedError(
            "the Triton kernels use 32-bit positions: expected length + padding + "
            f"{_TILE} * stride below 2**31, but got length {length}, padding {g.padding}, stride "
            f"{g.stride}; use backend='reference'"
        )


def _tile(positions: int, along: int, batch: int, length: int) -> tuple[int, int]:
    """Split a program's positions between batch and series: ``(BN, BL)``, powers of two."""
    # Split the batch first: a longer run of neighbours wastes more at the ends of the series.
    bn = min(positions // along, power_of_two(batch))
    return bn, min(positions // bn, _MOST_ALONG, max(16, power_of_two(length)))


def _run(positions: int, batch: int, length: int) -> tuple[int, int]:
    """Split the positions of a product over as few series as possible."""
    return _tile(positions, min(positions, max(16, power_of_two(length))), batch, length)


def _programs(*sizes_and_tiles: int) -> int:
    """Return how many programs cover all sizes; each size is followed by its tile size."""
    pairs = zip(sizes_and_tiles[::2], sizes_and_tiles[1::2], strict=True)
    return math.prod(-(-size // tile) for size, tile in pairs)


def _block_tile(x: Tensor, g: Geometry) -> Tile | None:
    """Return the tile for multiplying blocks, or None for single weights."""
    tile = gpu_plans.tile_of(g)
    return tile if tile is not None and multiplies_blocks(x.dtype, x.device) else None


def _sizes(tile: Tile) -> Options:
    rounded = {"TO": power_of_two(tile.outputs), "TI": power_of_two(tile.inputs)}
    return {"BO": tile.outputs, "BI": tile.inputs, **rounded}


def _places(crow: Tensor, col: Tensor, g: Geometry) -> Options:
    """Return the arguments that locate the weights of each unit."""
    (places,) = gpu_plans.block_places(crow, col, g)
    return {"places": places, "pointers": crow, "group_channels": g.shape[1]}


def _packed(values: Tensor, pattern: Pattern, tile: Tile) -> Tensor:
    # The weights of each unit, contiguous: (units, TO, TI).
    where, sizes = _places(*pattern), _sizes(tile)
    units, channels = len(where["places"]), pattern[2].shape[0]
    tiles = values.new_empty((units, sizes["TO"], sizes["TI"]))
    if units:
        with torch.accelerator.device_index(values.device.index):
            block_kernels.pack[(units,)](
                tiles, values.contiguous(), len(values), channels, **where, **sizes, num_warps=1
            )
    return tiles


def _multiplied(x: Tensor, rows: int, depth: int, columns: int, warps: int, stages: int) -> Options:
    """Return options for a kernel that multiplies ``(rows, depth)`` by ``(depth, columns)``.

    Larger products need more registers, and leave shared memory for fewer steps in flight.
    """
    step = (rows + columns) * depth * x.element_size()
    return {
        "num_warps": max(warps, min(4, rows * columns // 1024)),
        "num_stages": min(stages, 1 + _SHARED // step),
        # Triton's interpreter would multiply the bits of bfloat16 as integers.
        "WIDEN": x.device.type == "cpu" and x.dtype == torch.bfloat16,
    }


def _correlate(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    pattern: Pattern,
    plans: tuple[gpu_plans.Make[Any], gpu_plans.Make[Any]],  # of single weights and of blocks
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
    tile = _block_tile(x, pattern[2])
    plan: tuple[Tensor | None, ...] = plans[tile is not None](*pattern)
    rows, entries, source, *_ = *plan, None
    assert rows is not None
    how: Options
    if tile is None:
        kernel, weights = kernels.correlate, values.contiguous()
        bn, bl = _tile(_TILE, _ALONG, batch, per_phase)
        how = {"num_warps": 2, "enable_fp_fusion": False}  # the kernels fuse explicitly
    else:
        kernel, weights = block_kernels.correlate, _packed(values, pattern, tile)
        # The batch must not decide, or bits might depend on it.
        positions, *run = _BLOCKS_SHORT if per_phase <= _SHORT else _BLOCKS_LONG
        bn, bl = _run(positions, batch, per_phase)
        turned = source is not None
        how = _sizes(Tile(*tile[::-1]) if turned else tile) | {"TURNED": turned}
        how |= _multiplied(x, how["TO"], how["TI"], positions, *run)
    grid = rows.shape[0] * _programs(per_phase, bl, batch, bn)
    with torch.accelerator.device_index(x.device.index):
        kernel[(grid,)](
            out,
            x,
            weights,
            None if bias is None else bias.contiguous(),
            rows,
            entries,
            source,
            weights.shape[0],
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
            **how,
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
    batch, _, length = input.shape
    check(input, values, col_indices, bias, g)
    _check_positions(g, length)
    return _correlate(
        input,
        values,
        bias,
        (crow_indices, col_indices, g),
        (gpu_plans.triton_fprop, gpu_plans.block_fprop),
        input.new_empty((batch, g.out_channels, g.output_length(length))),
        in_step=g.stride,
        out_step=1,
        origin=-g.left,
        lead=0,
        offsets=(0, (g.kernel_size - 1) * g.dilation),
        relu=relu,
        mode=g.padding_mode,
    )


@folds_padding
def dgrad(
    grad_output: Tensor,
    values: Tensor,
    crow_indices: Tensor,
    col_indices: Tensor,
    geometry: Sequence[int],
    input_length: int,
    bias: Tensor | None = None,
) -> Tensor:
    g = Geometry.from_numbers(geometry)
    batch, channels = grad_output.shape[0], g.group_channels * g.groups
    check(grad_output, values, col_indices, bias, g, transposed=True)
    g.check_length(input_length)
    _check_positions(g, input_length)
    expected = (batch, g.out_channels, g.output_length(input_length))
    _expect("grad_output", grad_output, expected, grad_output)
    return _correlate(
        grad_output,
        values,
        bias,
        (crow_indices, col_indices, g),
        (gpu_plans.triton_dgrad, gpu_plans.block_dgrad),
        grad_output.new_empty((batch, channels, input_length)),
        in_step=1,
        out_step=g.stride,
        origin=0,
        lead=g.left,
        offsets=(-((g.kernel_size - 1) * g.dilation // g.stride), 0),
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
    batch, _, length = input.shape
    g.check_length(length)
    _check_positions(g, length)
    out_length, nnz = g.output_length(length), col_indices.shape[0]
    _expect("input", input, (batch, g.group_channels * g.groups, length), input)
    _expect("grad_output", grad_output, (batch, g.out_channels, out_length), input)
    if nnz == 0 or batch == 0:
        return input.new_zeros(nnz)
    pattern = crow_indices, col_indices, g
    tile = _block_tile(input, g)
    how: Options
    if tile is None:
        kernel, (runs,) = kernels.wgrad, gpu_plans.triton_wgrad(*pattern)
        entries, size = gpu_plans.triton_fprop(*pattern).entries, gpu_plans.run_length(g.shape)
        bn, bl = _tile(min(_WGRAD_TILE // size, _TILE), _WGRAD_ALONG, batch, out_length)
        unroll = min(_UNROLL, power_of_two(-(-out_length // bl)))
        how = {"UNROLL": unroll, "num_warps": 4, "enable_fp_fusion": False}
        least, most = _LEAST_TILES, _MOST_CHUNKS
    else:
        kernel, (runs,) = block_kernels.wgrad, gpu_plans.block_wgrad(*pattern)
        entries, size = gpu_plans.block_fprop(*pattern).entries, tile.run_length
        positions, *run = _BLOCKS_WGRAD
        bn, bl = _run(positions, batch, out_length)
        how = _sizes(tile) | _places(*pattern) | {"units": len(entries)}
        how |= _multiplied(input, how["TO"], positions, size * how["TI"], *run)
        unroll, least, most = 1, _BLOCKS_LEAST_TILES, _BLOCKS_MOST_CHUNKS
    tiles = _programs(out_length, bl * unroll, batch, bn)
    each = _programs(tiles, min(most, _programs(tiles, least)))
    chunks = _programs(tiles, each)
    wide = torch.promote_types(input.dtype, torch.float32)
    out = input.new_empty((chunks, nnz), dtype=wide if chunks > 1 else input.dtype)
    with torch.accelerator.device_index(input.device.index):
        kernel[(runs.shape[0], chunks)](
            out,
            grad_output,
            input,
            runs,
            entries,
            nnz,
            batch,
            *input.shape[1:],
            *grad_output.shape[1:],
            *grad_output.stride(),
            *input.stride(),
            g.stride,
            g.left,
            (g.kernel_size - 1) * g.dilation,
            each,
            MODE=g.padding_mode,
            BE=size,
            BN=bn,
            BL=bl,
            **how,
        )
    return out[0] if chunks == 1 else out.sum(0).to(input.dtype)
