"""An update by tensor operations of constant sizes: a GPU computes it without waiting."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from sparseconv.core.blocks import Block, Shape, spread, unit_means, unit_shape
from sparseconv.core.region import Region


def update(
    crow: Tensor,
    col: Tensor,
    shape: Shape,
    block: Block,
    regions: Sequence[Region],
    fraction: float | Tensor,
    values: Tensor,
    dense_grad: Tensor | None,
    seed: int | Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Prune and grow as ``prune_and_grow`` says, on the device of all these tensors.

    Args:
        crow, col: of the pattern, with its ``shape`` and ``block``.
        fraction: a float, or a tensor ``()``, as a CUDA graph reads it.
        values: ``(nnz,)``, in any floating dtype.
        dense_grad: ``(C_out, C_in // groups, K)``: grow where it is large; None: at random.
        seed: below 2**62, an int or a tensor ``()``.

    Returns:
        The new ``crow`` and ``col``, and ``source``, int64 ``(nnz,)``.
    """
    numel, nnz, taps = math.prod(shape), len(col), shape[2]
    everywhere = torch.arange(numel, device=col.device)
    at = positions(crow, col, taps)
    before = torch.zeros_like(everywhere, dtype=torch.bool).index_fill_(0, at, True)
    magnitude = magnitudes(values)
    weights = magnitude.new_zeros(numel).index_copy_(0, at, magnitude).view(shape)
    active, scores = before.view(shape), None if dense_grad is None else magnitudes(dense_grad)
    if block != (1, 1):
        active, weights = active[:: block[0], :: block[1]], unit_means(weights, block)
        scores = None if scores is None else unit_means(scores.double().square(), block)
    region, number, count = _numbered(regions, shape, block, col.device)
    kept, grown = _move(
        active.flatten(), weights.flatten(), region, count, fraction,
        _draws(number, seed) if scores is None else -scores.flatten(),
    )  # fmt: skip
    if block != (1, 1):
        kept, grown = (spread(x.view(active.shape), shape, block).flatten() for x in (kept, grown))
    now = kept | grown
    rank = now.cumsum(0)
    # Where none is active the last entry is written, which is cut off.
    at = everywhere.new_empty(nnz + 1).scatter_(0, (rank - 1).where(now, nnz), everywhere)[:nnz]
    source = (before.cumsum(0)[at] - 1).where(kept[at], -1)
    return pad(rank[taps - 1 :: taps], (1, 0)).int(), (at % taps).int(), source


def positions(crow: Tensor, col: Tensor, taps: int) -> Tensor:
    """Return the flat positions of active weights, as ``KernelCSR.positions``, on any device."""
    entry = torch.arange(len(col), dtype=torch.int32, device=col.device)
    return (torch.searchsorted(crow, entry, right=True) - 1) * taps + col


def magnitudes(tensor: Tensor) -> Tensor:
    """Return the absolute values in float32 or float64; NaN is infinite."""
    dtype = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    return tensor.detach().to(dtype).abs().nan_to_num_(nan=math.inf, posinf=math.inf)


def _numbered(
    regions: Sequence[Region], shape: Shape, block: Block, device: torch.device
) -> tuple[Tensor, Tensor, int]:
    """Return the region of each unit, its number among those of all regions, and how many regions.

    Units of the smaller last blocks have regions by themselves, so that nnz is kept.
    """
    boxes = [box for region in regions for box in _boxes(region, shape, block)]
    at = torch.full(unit_shape(shape, block), len(boxes), device=device)
    numbers, begin = torch.zeros_like(at), 0
    for i, box in enumerate(boxes):
        at[box] = i
        inside = numbers[box]
        numbers[box] = torch.arange(begin, begin + inside.numel(), device=device).view(inside.shape)
        begin += inside.numel()
    return at.flatten(), numbers.flatten(), len(boxes)


def _boxes(region: Region, shape: Shape, block: Block) -> Iterator[tuple[slice, slice, slice]]:
    """Cut a region in units between whole and smaller blocks."""
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
    """Return which units stay and which are new: those of least weight go, of least key come."""
    none = torch.full_like(region, count)  # in no region
    held = region.where(active, none)
    inside, room = _sizes(held, count), _sizes(region, count)
    moved = torch.minimum((inside.double() * fraction).ceil().long(), room - inside)
    moved[count] = 0
    kept = active & ~_least(weights, held, inside, moved)
    free = none.where(kept, region)
    return kept, _least(key, free, _sizes(free, count), moved)


def _sizes(region: Tensor, count: int) -> Tensor:
    return region.new_zeros(count + 1).index_add_(0, region, torch.ones_like(region))


def _least(key: Tensor, region: Tensor, sizes: Tensor, wanted: Tensor) -> Tensor:
    """Mark in each region as many of the least keys as are ``wanted``; of equal ones the first."""
    order = key.argsort(stable=True)
    order = order[region[order].argsort(stable=True)]
    at = region[order]
    rank = torch.arange(len(key), device=key.device) - (sizes.cumsum(0) - sizes)[at]
    return torch.zeros_like(key, dtype=torch.bool).scatter_(0, order, rank < wanted[at])


def _draws(number: Tensor, seed: int | Tensor) -> Tensor:
    """Draw 31 bits for each number: csrc/cpu/kernels/draws.inl, in int64."""
    x = number * (seed & 0xFFFFFFFF | 1) + (seed >> 32)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = x & 0xFFFFFFFF
        x = (x ^ x >> shift) * factor
    x = x & 0xFFFFFFFF
    return (x ^ x >> 16) >> 1
