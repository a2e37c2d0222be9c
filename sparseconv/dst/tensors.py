"""Update patterns with tensor operations of constant size, so the CPU need not wait for a GPU."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from sparseconv.core.blocks import Block, Region, Shape, spread, unit_means, unit_shape
from sparseconv.core.pattern import kernels_of


def update(
    crow: Tensor,
    col: Tensor,
    shape: Shape,
    block: Block,
    regions: Sequence[Region],
    fraction: float | Tensor,
    seed: int,
    weights: Tensor,
    scores: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Prune and grow as ``prune_and_grow`` does, on the device of these tensors.

    Args:
        crow, col, shape, block: the arrays, the shape and the block of the pattern.
        fraction: a float or a tensor ``()``.
        seed: an int below 2**62.
        weights, scores: magnitudes of the values and of the dense gradient, in float32 or float64;
            without ``scores``, growth is random.

    Returns:
        The new ``crow`` and ``col``, and the ``source_index``.
    """
    table = table_of(tuple(regions), shape, block, col.device)
    taps = shape[2]
    entry, crow, col = torch.arange(len(col), device=col.device), crow.long(), col.long()
    kernel = kernels_of(crow, col)
    unit = table.block[kernel] * taps + col
    active = torch.zeros_like(table.region, dtype=torch.bool).index_fill_(0, unit, True)
    weights = weights.new_zeros(math.prod(shape)).index_copy_(0, kernel * taps + col, weights)
    if block != (1, 1):
        weights = unit_means(weights.view(shape), block).flatten()
        scores = None if scores is None else unit_means(scores.double().square(), block)
    kept, grown = _move(
        active, weights, table.region, table.regions, fraction,
        _draws(table.number, seed) if scores is None else -scores.flatten(),
    )  # fmt: skip
    now = kept | grown
    order = now.cumsum(0) - 1
    # The others write to the last entry, which nothing reads.
    listed = order.new_empty(len(now) + 1).scatter_(
        0, order.where(now, len(now)), torch.arange(len(now), device=col.device)
    )
    first, its_first = (_before(found.view(-1, taps).sum(1)) for found in (now, active))
    new_crow = _before(first.diff()[table.block])
    kernel = kernels_of(new_crow, col)
    of_block = table.block[kernel]
    unit = listed[first[of_block] + entry - new_crow[kernel]]
    rank = (active.cumsum(0) - 1)[unit] - its_first[of_block]
    source = (crow[kernel] + rank).where(kept[unit], -1)
    return new_crow.int(), (unit % taps).int(), source


def _before(sizes: Tensor) -> Tensor:
    """Return the sum of the entries before each entry, and the total."""
    return pad(sizes.cumsum(0), (1, 0))


class Table(NamedTuple):
    """Hold a layer's regions in the form that its updates read."""

    region: Tensor  # int64 (units,): the region of each unit; `regions` if none
    number: Tensor  # int64 (units,): the unit's number among those of all regions
    block: Tensor  # int64 (kernels,): the block of each kernel
    regions: int


@functools.lru_cache(maxsize=1024)  # more than a network has kinds of layers: 16 bytes per unit
def table_of(
    regions: tuple[Region, ...], shape: Shape, block: Block, device: torch.device
) -> Table:
    """Assign numbers to units; smaller last blocks form separate regions, so that nnz is kept."""
    boxes = [box for region in regions for box in _boxes(region, shape, block)]
    units = unit_shape(shape, block)
    region = torch.full(units, len(boxes), device=device)
    number, begin = torch.zeros_like(region), 0
    for i, box in enumerate(boxes):
        region[box] = i
        inside = number[box]
        number[box] = torch.arange(begin, begin + inside.numel(), device=device).view(inside.shape)
        begin += inside.numel()
    blocks = torch.arange(units[0] * units[1], device=device).view(*units[:2], 1)
    of_kernel = spread(blocks, (*shape[:2], 1), block).flatten()
    return Table(region.flatten(), number.flatten(), of_kernel, len(boxes))


def _boxes(region: Region, shape: Shape, block: Block) -> Iterator[tuple[slice, slice, slice]]:
    """Split a region into boxes of whole blocks and of smaller ones, in units."""
    (top, end), taps = region
    ends = (end, shape[1])
    cuts = [
        (begin // size, max(begin // size, min(last, full) // size), -(-last // size))
        for begin, last, full, size in zip((top, 0), ends, shape[:2], block, strict=True)
    ]
    for columns in (slice(*cuts[1][:2]), slice(*cuts[1][1:])):
        for rows in (slice(*cuts[0][:2]), slice(*cuts[0][1:])):
            if rows.start < rows.stop and columns.start < columns.stop and taps[0] < taps[1]:
                yield rows, columns, slice(*taps)


def _move(
    active: Tensor,
    weights: Tensor,
    region: Tensor,
    count: int,
    fraction: float | Tensor,
    key: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the kept and the grown units: prune the smallest weights, grow the smallest keys."""
    none = torch.full_like(region, count)  # in no region
    held = region.where(active, none)
    inside, room = _sizes(held, count), _sizes(region, count)
    moved = torch.minimum((inside.double() * fraction).ceil().long(), room - inside)
    moved[count:].zero_()  # assigning 0 would copy it from the CPU, and wait
    kept = active & ~_least(weights, held, inside, moved)
    free = none.where(kept, region)
    return kept, _least(key, free, _sizes(free, count), moved)


def _sizes(region: Tensor, count: int) -> Tensor:
    return region.new_zeros(count + 1).index_add_(0, region, torch.ones_like(region))


def _least(key: Tensor, region: Tensor, sizes: Tensor, wanted: Tensor) -> Tensor:
    """Mark the ``wanted`` smallest keys of each region; in a tie, mark the first."""
    order = key.argsort(stable=True)
    order = order[region[order].argsort(stable=True)]
    at = region[order]
    rank = torch.arange(len(key), device=key.device) - (sizes.cumsum(0) - sizes)[at]
    return torch.zeros_like(key, dtype=torch.bool).scatter_(0, order, rank < wanted[at])


def _draws(number: Tensor, seed: int) -> Tensor:
    """Draw 31 bits for each number, as csrc/cpu/kernels/draws.inl does, in int64."""
    x = number * (seed & 0xFFFFFFFF | 1) + (seed >> 32)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = x & 0xFFFFFFFF
        x = (x ^ x >> shift) * factor
    x = x & 0xFFFFFFFF
    return (x ^ x >> 16) >> 1
