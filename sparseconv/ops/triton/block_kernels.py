"""Compute convolutions with patterns in blocks of channels, on tensor cores.

A *unit*, one tap of a block, is a small dense matrix; a step multiplies it by a tile of the input.
Plans are as in ``kernels``, for a pattern whose channels are blocks and whose weights are units. A
block has up to ``BO`` outputs and ``BI`` inputs; ``TO`` and ``TI`` are these sizes rounded up to
powers of two. Sums are float32 and run over the units in the plan's order.
"""

# mypy: disable-error-code="untyped-decorator, no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

from sparseconv.ops.triton.kernels import SIZES, decoded, program_of, source_of, within


@triton.jit
def _product(a, b, acc, WIDEN: tl.constexpr):
    if WIDEN:  # Triton's interpreter would multiply the bits of bfloat16 as integers
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="tf32")


@triton.jit
def _weights(
    place, o, c, pointers, nnz, channels, group_channels, BO: tl.constexpr, BI: tl.constexpr
):
    """Return where the weights of a unit are in ``values``, and which of them exist.

    ``o`` and ``c`` are channels within the block; ``place`` is as in ``gpu_plans``.
    """
    first = within((place >> 32).to(tl.int32), 0, channels * group_channels - 1)
    exists = (o < BO) & (first // group_channels + o < channels)
    exists = exists & (c < BI) & (first % group_channels + c < group_channels)
    kernel = first + o * group_channels + c
    at = tl.load(pointers + kernel, mask=exists, other=0) + place.to(tl.int32)
    return within(at, 0, nnz - 1), exists


@triton.jit(do_not_specialize=SIZES)
def pack(
    tiles,  # (units, TO, TI)
    values,
    nnz,
    channels,
    places,
    pointers,  # the pattern's crow_indices
    group_channels,
    BO: tl.constexpr,
    BI: tl.constexpr,
    TO: tl.constexpr,
    TI: tl.constexpr,
):
    """Copy the weights of each unit into a tile, with zeros for those that do not exist."""
    unit = tl.program_id(0).to(tl.int64)
    o, c = tl.arange(0, TO)[:, None], tl.arange(0, TI)[None, :]
    at, exists = _weights(
        tl.load(places + unit), o, c, pointers, nnz, channels, group_channels, BO, BI
    )
    w = tl.load(values + at, mask=exists, other=0)
    tl.store(tiles + unit * (TO * TI) + (o * TI + c), w)


@triton.jit(do_not_specialize=SIZES)
def correlate(
    out,
    x,
    tiles,  # from `pack`
    bias,
    rows,  # this and the following as in `kernels.correlate`, for units
    entries,
    source,
    nnz,  # units
    batch,
    channels,
    x_channels,
    in_length,
    out_length,
    x_n,
    x_c,
    x_l,
    in_step,
    out_step,
    origin,
    lead,
    low,
    high,
    RELU: tl.constexpr,
    MODE: tl.constexpr,
    BN: tl.constexpr,
    BL: tl.constexpr,
    BO: tl.constexpr,
    BI: tl.constexpr,
    TO: tl.constexpr,
    TI: tl.constexpr,
    TURNED: tl.constexpr,  # dgrad: outputs are the tiles' inputs
    WIDEN: tl.constexpr,
):
    """Compute ``kernels.correlate`` for blocks: a row is a block of outputs in one stride phase."""
    blocks = (channels + BO - 1) // BO
    block, begin, end, phase, count, n, j0 = program_of(
        rows, nnz, batch, blocks, out_length, out_step, lead, BN, BL
    )
    j = j0 + tl.arange(0, BN * BL) % BL
    sample = x + tl.minimum(n, batch - 1).to(tl.int64) * x_n
    o, i = tl.arange(0, TO), tl.arange(0, TI)
    channel = block * BO + o
    known = (o < BO) & (channel < channels)
    if TURNED:
        weight = tiles + (o[:, None] + i[None, :] * TO)
    else:
        weight = tiles + (o[:, None] * TI + i[None, :])

    acc = tl.full((TO, BN * BL), 0, tl.float32)
    if bias is not None:
        acc += tl.load(bias + channel, mask=known, other=0).to(tl.float32)[:, None]
    padded = j * in_step + origin + (phase + lead) // out_step
    x_blocks = (x_channels + BI - 1) // BI
    series = i.to(tl.int64) * x_c
    for e in range(begin, end):
        x_block, offset = decoded(tl.load(entries + e), x_blocks, low, high)
        unit = e if source is None else within(tl.load(source + e), 0, nnz - 1)
        position, valid = source_of(padded + offset, in_length, MODE)
        here = sample + (x_block * BI * x_c + position.to(tl.int64) * x_l)
        has = i < tl.minimum(BI, x_channels - x_block.to(tl.int32) * BI)
        v = tl.load(here[None, :] + series[:, None], mask=has[:, None] & valid[None, :], other=0)
        w = tl.load(weight + tl.full((), TO * TI, tl.int64) * unit)
        acc = _product(w, v, acc, WIDEN)

    if RELU:
        acc = tl.where(acc < 0, 0, acc)  # NaN stays
    stored = known[:, None] & ((n < batch) & (j < count))[None, :]
    target = out + (n.to(tl.int64) * channels * out_length + (phase + j * out_step))
    target = target[None, :] + (channel.to(tl.int64) * out_length)[:, None]
    tl.store(target, acc.to(out.dtype.element_ty), mask=stored)


@triton.jit(do_not_specialize=SIZES)
def wgrad(
    out,  # (chunks, nnz)
    grad,
    x,
    runs,  # int32 (runs, 3): block of outputs, first unit, past the last
    entries,
    nnz,
    batch,
    x_channels,
    in_length,
    channels,
    out_length,
    g_n,
    g_c,
    g_l,
    x_n,
    x_c,
    x_l,
    step,
    left,
    reach,
    tiles_each,
    units,
    places,
    pointers,
    group_channels,
    MODE: tl.constexpr,
    BE: tl.constexpr,
    BN: tl.constexpr,
    BL: tl.constexpr,
    BO: tl.constexpr,
    BI: tl.constexpr,
    TO: tl.constexpr,
    TI: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Compute ``kernels.wgrad`` for up to ``BE`` units; the units' inputs are the columns."""
    run = runs + tl.program_id(0) * 3
    block = within(tl.load(run), 0, (channels + BO - 1) // BO - 1)
    begin, end = tl.maximum(tl.load(run + 1), 0), tl.minimum(tl.load(run + 2), units)
    if begin >= end:
        return
    column = tl.arange(0, BE * TI)
    unit, i = tl.minimum(begin + column // TI, end - 1), column % TI
    x_block, tap = decoded(tl.load(entries + unit), (x_channels + BI - 1) // BI, 0, reach)
    c = x_block * BI + i
    read = (begin + column // TI < end) & (i < BI) & (c < x_channels)
    o = tl.arange(0, TO)
    channel = block.to(tl.int64) * BO + o
    g_row, known = grad + channel * g_c, (o < BO) & (channel < channels)

    tiles_l = (out_length + BL - 1) // BL
    tiles = tiles_l * ((batch + BN - 1) // BN)
    begin_tile = tl.program_id(1) * tiles_each
    at = tl.arange(0, BN * BL)
    acc = tl.full((TO, BE * TI), 0, tl.float32)
    for tile in range(begin_tile, tl.minimum(begin_tile + tiles_each, tiles)):
        n, position = tile // tiles_l * BN + at // BL, tile % tiles_l * BL + at % BL
        valid = (n < batch) & (position < out_length)
        g_at = n.to(tl.int64) * g_n + position.to(tl.int64) * g_l
        g = tl.load(g_row[:, None] + g_at[None, :], mask=known[:, None] & valid[None, :], other=0)
        padded = position * step - left
        position, inside = source_of(padded[:, None] + tap[None, :], in_length, MODE)
        x_at = (n.to(tl.int64) * x_n)[:, None] + (c * x_c)[None, :] + position.to(tl.int64) * x_l
        v = tl.load(x + x_at, mask=valid[:, None] & inside & read[None, :], other=0)
        acc = _product(g, v, acc, WIDEN)

    place = tl.load(places + unit)[None, :]
    at, exists = _weights(
        place, o[:, None], i[None, :], pointers, nnz, channels, group_channels, BO, BI
    )
    target = out + tl.program_id(1).to(tl.int64) * nnz + at
    tl.store(target, acc.to(out.dtype.element_ty), mask=exists & read[None, :])
