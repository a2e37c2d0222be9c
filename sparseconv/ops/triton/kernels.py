"""Compute convolutions in tiles of ``BN`` series times ``BL`` neighbouring positions, flattened.

Every sum runs over the active weights in the plan's order, so its bits depend on neither the tile
nor the batch. The accumulator is float64 for float64 inputs, otherwise float32. The sizes determine
the order of sums over positions (wgrad). Offsets into tensors have 64 bits, and positions in a
series have 32.

A tile whose taps all fall inside the series needs no mask and no padding, and uses the fast loop.
"""

# Triton infers types from the arguments, and its decorator is untyped.
# mypy: disable-error-code="untyped-decorator, no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

# Sizes are not specialized, or each length of series would be compiled anew.
SIZES = (
    "nnz", "units", "batch", "channels", "group_channels", "x_channels", "in_length", "out_length",
    "x_n", "x_c", "g_n", "g_c", "origin", "lead", "low", "high", "left", "reach", "tiles_each",
)  # fmt: skip


@triton.jit
def source_of(position, length, MODE: tl.constexpr):
    """Return the index of the sample at a padded position, and whether the sample exists."""
    if MODE == "replicate":
        position = tl.minimum(tl.maximum(position, 0), length - 1)
    elif MODE == "reflect":
        position = tl.where(position < 0, -position, position)
        position = tl.where(position < length, position, 2 * (length - 1) - position)
    elif MODE == "circular":
        position = tl.where(position < 0, position + length, position)
        position = tl.where(position < length, position, position - length)
    return position, (position >= 0) & (position < length)


# Kernels clamp indices when they read them, because a check before would wait for the GPU. So no
# plan, however wrong, makes a kernel leave its buffers. Clamping takes 12 of the 332 instructions
# (dgrad: 21 of 353) that sm_90 executes for 64 multiply-adds of the fast loop.
@triton.jit
def within(index, least, most):
    return tl.minimum(tl.maximum(index, least), most)


@triton.jit
def decoded(entry, channels, low, high):
    """Return the channel (64 bits) and the offset (32 bits) of an entry."""
    channel = within((entry >> 32).to(tl.int32), 0, channels - 1).to(tl.int64)
    return channel, within(entry.to(tl.int32), low, high)


@triton.jit
def _entry(values, entries, source, e, nnz, channels, low, high):
    """Read an entry's weight, channel and offset."""
    channel, offset = decoded(tl.load(entries + e), channels, low, high)
    w = tl.load(values + (e if source is None else within(tl.load(source + e), 0, nnz - 1)))
    return w, channel, offset


@triton.jit
def program_of(
    rows, nnz, batch, channels, out_length, out_step, lead, BN: tl.constexpr, BL: tl.constexpr
):
    """Return what a program of ``correlate`` computes: its row, and the positions of its tile.

    The row consists of channel, first entry, end, phase and number of outputs in the phase. The
    positions consist of the series and the first output of the tile.
    """
    tiles_l = ((out_length + out_step - 1) // out_step + BL - 1) // BL
    tiles = tiles_l * ((batch + BN - 1) // BN)
    row_at = rows + tl.program_id(0) // tiles * 3
    row = within(tl.load(row_at), 0, channels * out_step - 1)
    begin, end = tl.maximum(tl.load(row_at + 1), 0), tl.minimum(tl.load(row_at + 2), nnz)
    tile = tl.program_id(0) % tiles
    phase = (row % out_step - lead % out_step + out_step) % out_step
    count = (out_length - phase + out_step - 1) // out_step
    n = tile // tiles_l * BN + tl.arange(0, BN * BL) // BL
    return row // out_step, begin, end, phase, count, n, tile % tiles_l * BL


@triton.jit(do_not_specialize=SIZES)
def correlate(
    out,  # (batch, channels, out_length), contiguous
    x,
    values,
    bias,  # or None
    rows,  # int32 (channels * out_step, 3): row, first entry, past the last; heaviest first
    entries,  # int64: channel of x in the upper half, offset in the lower
    source,  # int32: the index of an entry's weight in `values`; None if it is the entry's
    nnz,
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
    low,  # least and greatest offset of an entry
    high,
    RELU: tl.constexpr,
    MODE: tl.constexpr,
    BN: tl.constexpr,
    BL: tl.constexpr,
):
    """Compute the outputs of one row, which is a pair of channel and stride phase.

    ``out[n, c, j * out_step + phase] = bias[c] + sum of w * x[n, channel, j * in_step + first +
    offset]`` over the row's entries. fprop reads in steps and has one phase. dgrad writes in steps,
    because each tap connects outputs to only every ``stride``-th input sample.
    """
    real: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    channel, begin, end, phase, count, n, j0 = program_of(
        rows, nnz, batch, channels, out_length, out_step, lead, BN, BL
    )
    at = tl.arange(0, BN * BL)
    j = j0 + at % BL
    sample = x + tl.minimum(n, batch - 1).to(tl.int64) * x_n

    acc = tl.full((BN * BL,), 0, real)
    if bias is not None:
        acc += tl.load(bias + channel).to(real)
    first = origin + (phase + lead) // out_step
    start = j0 * in_step + first
    if (start + low >= 0) & (start + (BL - 1) * in_step + high < in_length):
        inside = sample + (start.to(tl.int64) * x_l + (at % BL).to(tl.int64) * in_step * x_l)
        for e in tl.range(begin, end, loop_unroll_factor=4):
            w, c, offset = _entry(values, entries, source, e, nnz, x_channels, low, high)
            offset = c * x_c + offset.to(tl.int64) * x_l
            acc = tl.fma(tl.load(inside + offset).to(real), w.to(real), acc)
    else:
        padded = tl.minimum(j, count - 1) * in_step + first
        for e in range(begin, end):
            w, c, offset = _entry(values, entries, source, e, nnz, x_channels, low, high)
            position, valid = source_of(padded + offset, in_length, MODE)
            offset = c * x_c + position.to(tl.int64) * x_l
            acc = tl.fma(tl.load(sample + offset, mask=valid, other=0).to(real), w.to(real), acc)

    if RELU:
        acc = tl.where(acc < 0, 0, acc)  # NaN stays
    target = out + (n.to(tl.int64) * channels + channel) * out_length + (phase + j * out_step)
    tl.store(target, acc.to(out.dtype.element_ty), mask=(n < batch) & (j < count))


@triton.jit(do_not_specialize=SIZES)
def wgrad(
    out,  # (chunks, nnz)
    grad,
    x,
    runs,  # int32 (runs, 3): output channel, first entry, past the last
    entries,  # as in `correlate`
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
    tiles_each,  # tiles of positions in one chunk
    MODE: tl.constexpr,
    BE: tl.constexpr,
    BN: tl.constexpr,
    BL: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """Compute ``out[chunk, e] = sum of grad[n, o, l] * x[n, channel, l * step + offset - left]``.

    The sum runs over the chunk's positions. A program computes up to ``BE`` entries of one output
    channel, all of which read the same ``grad``.
    """
    real: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    run = runs + tl.program_id(0) * 3
    channel = within(tl.load(run), 0, channels - 1).to(tl.int64)
    begin, end = tl.maximum(tl.load(run + 1), 0), tl.minimum(tl.load(run + 2), nnz)
    if begin >= end:  # the grid fits every pattern with this nnz
        return
    e = begin + tl.arange(0, BE)
    series, tap = decoded(tl.load(entries + tl.minimum(e, end - 1)), x_channels, 0, reach)
    series *= x_c
    inside = series + tap.to(tl.int64) * x_l
    tiles_l = (out_length + BL * UNROLL - 1) // (BL * UNROLL)
    tiles = tiles_l * ((batch + BN - 1) // BN)
    begin_tile = tl.program_id(1) * tiles_each
    at = tl.arange(0, BN * BL)

    wide = tl.full((), BL, tl.int64)
    g_step, x_step = wide * g_l, wide * step * x_l

    acc = tl.full((BE, BN * BL), 0, real)
    for tile in range(begin_tile, tl.minimum(begin_tile + tiles_each, tiles)):
        n0, l0 = tile // tiles_l * BN, tile % tiles_l * (BL * UNROLL)
        n, first = n0 + at // BL, l0 + at % BL
        start = l0 * step - left
        g_at = grad + channel * g_c + (n.to(tl.int64) * g_n + first.to(tl.int64) * g_l)
        sample = x + n.to(tl.int64) * x_n
        last = start + (BL * UNROLL - 1) * step + reach  # inside only if all outputs exist
        if (n0 + BN <= batch) & (start >= 0) & (last < in_length):
            sample += start.to(tl.int64) * x_l + (at % BL).to(tl.int64) * step * x_l
            x_at = sample[None, :] + inside[:, None]
            for u in tl.static_range(UNROLL):
                g = tl.load(g_at + u * g_step).to(real)
                v = tl.load(x_at + u * x_step).to(real)
                acc = tl.fma(v, tl.broadcast_to(g[None, :], (BE, BN * BL)), acc)
        else:
            for u in range(UNROLL):
                position = first + u * BL
                valid = (n < batch) & (position < out_length)
                g = tl.load(g_at + u * g_step, mask=valid, other=0).to(real)
                padded = tl.minimum(position, out_length - 1) * step - left
                source, known = source_of(padded[None, :] + tap[:, None], in_length, MODE)
                x_at = sample[None, :] + (series[:, None] + source.to(tl.int64) * x_l)
                v = tl.load(x_at, mask=valid[None, :] & known, other=0).to(real)
                acc = tl.fma(v, tl.broadcast_to(g[None, :], (BE, BN * BL)), acc)

    target = out + tl.program_id(1).to(tl.int64) * nnz + e
    tl.store(target, tl.sum(acc, 1).to(out.dtype.element_ty), mask=e < end)
