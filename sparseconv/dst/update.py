"""Prune the smallest weights and grow others: one update of a pattern, as index arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sparseconv.core.blocks import spread, unit_means
from sparseconv.core.checks import share
from sparseconv.core.pattern import KernelCSR
from sparseconv.core.region import Region

Growth = Literal["random", "gradient", "static"]
GROWTHS: tuple[Growth, ...] = get_args(Growth)
PRUNE_FRACTION, PRUNE_FLOOR = 0.5, 0.001  # of DSN: the first share of weights moved, and the last


def prune_and_grow(
    pattern: KernelCSR,
    values: Tensor,
    regions: Sequence[Region],
    fraction: float,
    *,
    grow: Growth = "random",
    generator: torch.Generator | None = None,
    dense_grad: Tensor | None = None,
) -> tuple[KernelCSR, Tensor]:
    """Move a fraction of each region's active weights to other positions of that region.

    Prunes the ``ceil(fraction * nnz)`` weights of least magnitude (the first in CSR order among
    equals; NaN counts as largest) and grows as many among the positions that do not hold a
    survivor, so that a position just pruned may come back, as a fresh weight. Never more than
    there are inactive positions: a full region is unchanged. Weights outside all regions stay.
    A pattern of blocks moves whole units (a tap of a block), those of the smaller last blocks among
    themselves: the least mean magnitude is pruned, the largest norm of the gradient grown.

    Args:
        pattern: the active weights, shape ``(C_out, C_in // groups, K)``.
        values: ``(nnz,)`` in CSR order, on any device; only magnitudes are read.
        regions: disjoint boxes, which cut no block; the number of active weights (of a pattern of
            blocks: of units) in each is kept exactly.
        fraction: share of each region's active weights to move, in [0, 1].
        grow: ``"random"``: uniformly; ``"gradient"``: where ``dense_grad`` is largest in magnitude
            (the first position among equals); ``"static"``: change nothing.
        generator: a CPU generator for random growth; default: torch's global one.
        dense_grad: ``(C_out, C_in // groups, K)``, read for ``grow="gradient"`` only.

    Returns:
        The new pattern and ``source_index``, int64 ``(nnz,)`` on the CPU: for each new weight the
        old CSR index it had, or -1 if it was grown. If nothing moves, ``pattern`` itself.

    Raises:
        ValueError: arguments that do not fit each other, overlapping regions, a cut block.

    Example:
        >>> import torch
        >>> from sparseconv import KernelCSR, Region
        >>> pattern = KernelCSR.from_mask(torch.tensor([[[True, True, False, False]]]))
        >>> new, source = prune_and_grow(
        ...     pattern, torch.tensor([0.1, 2.0]), [Region((0, 1), (0, 4))], 0.5,
        ...     grow="gradient", dense_grad=torch.tensor([[[0.0, 0.0, 3.0, -4.0]]]))
        >>> new.positions(), source
        (tensor([1, 3]), tensor([ 1, -1]))

    Source: Mocanu et al. 2018 (SET), Evci et al. 2020 (RigL), Xiao et al. 2022 (DSN), Algorithm 1.
    """
    check_growth(grow)
    check_regions(regions, pattern)
    if values.shape != (pattern.nnz,):
        raise ValueError(f"values must have shape ({pattern.nnz},), but got {list(values.shape)}")
    fraction = share("fraction", fraction)
    if grow == "gradient" and (dense_grad is None or dense_grad.shape != pattern.shape):
        came = "none" if dense_grad is None else f"one of shape {list(dense_grad.shape)}"
        raise ValueError(
            f"grow='gradient' needs a dense_grad of shape {list(pattern.shape)}, but got {came}"
        )
    if grow == "static":
        return pattern, torch.arange(pattern.nnz, device="cpu")
    if pattern.block != (1, 1):
        how = {"grow": grow, "generator": generator}
        return _move_units(pattern, values, regions, fraction, dense_grad, how)
    # On int32, which holds all positions, by numpy: torch takes two to twenty times as long.
    _, channels, kernel_size = pattern.shape
    crow, tap = pattern.crow_indices.numpy(), pattern.col_indices.numpy()
    row = np.repeat(np.arange(len(crow) - 1, dtype=np.int32), np.diff(crow))
    magnitude = _magnitude(values)
    survives = np.ones(pattern.nnz, np.bool_)
    grown = []
    for (first, end), (left, right) in regions:
        top, bottom, width = first * channels, end * channels, right - left
        begin, stop = int(crow[top]), int(crow[bottom])
        inside = (tap[begin:stop] >= left) & (tap[begin:stop] < right)
        active = begin + np.flatnonzero(inside)
        free = (bottom - top) * width - len(active)
        count = min(math.ceil(fraction * len(active)), free)
        if count == 0:
            continue
        least = _least(magnitude.take(active), count)
        survives[active.take(np.flatnonzero(least))] = False
        kept = active.take(np.flatnonzero(~least))
        # Positions are counted along the region's box, which keeps the CSR order.
        taken = (row.take(kept) - np.int32(top)) * np.int32(width) + tap.take(kept) - np.int32(left)
        if dense_grad is not None and grow == "gradient":
            score = -_magnitude(dense_grad[first:end, :, left:right]).ravel()
            score[taken] = np.inf
            new = np.flatnonzero(_least(score, count)).astype(np.int32)
        else:
            new = _nth_free(_subset(free + count, count, generator), taken)
        # A row of the box begins kernel_size - width positions after the end of the one before.
        skipped = (new // np.int32(width)) * np.int32(kernel_size - width)
        grown.append(new + skipped + np.int32(top * kernel_size + left))
    if not grown:
        return pattern, torch.arange(pattern.nnz, device="cpu")
    kept = np.flatnonzero(survives)
    old = row.take(kept) * np.int32(kernel_size) + tap.take(kept)
    merged = np.concatenate([old, *grown])
    order = np.argsort(merged, kind="stable")  # a few ascending runs: a stable sort merges them
    source = np.concatenate([kept, np.full(len(merged) - len(kept), -1)]).take(order)
    positions = torch.from_numpy(merged.take(order).astype(np.int64))
    return KernelCSR.from_positions(positions, pattern.shape), torch.from_numpy(source)


Array = npt.NDArray[Any]


def _move_units(
    pattern: KernelCSR,
    values: Tensor,
    regions: Sequence[Region],
    fraction: float,
    dense_grad: Tensor | None,
    how: dict[str, Any],
) -> tuple[KernelCSR, Tensor]:
    """Prune and grow units among those of equal size, so that nnz is kept."""
    shape, block = pattern.shape, pattern.block
    mask = pattern.to_mask()
    magnitudes = torch.zeros(shape, dtype=torch.float64, device="cpu")
    means = unit_means(
        magnitudes.masked_scatter_(mask, values.detach().cpu().double().abs()), block
    )
    if dense_grad is not None:
        dense_grad = unit_means(dense_grad.detach().cpu().double().square(), block)
    active = mask[:: block[0], :: block[1]].contiguous()
    whole, columns = shape[0] // block[0], shape[1] // block[1]  # blocks that are not cut off
    # Each block is a kernel, and those of whole blocks of inputs come first.
    units = torch.arange(active.numel(), device="cpu").view_as(active)
    sides = units[:, :columns].flatten(0, 1), units[:, columns:].flatten(0, 1)
    units, boxes, begin = torch.cat(sides)[:, None], [], 0
    for width in (columns, active.shape[1] - columns):
        for (top, end), taps in regions:
            first, last = top // block[0], -(-end // block[0])
            cut = min(max(first, whole), last)
            for low, high in ((first, cut), (cut, last)):
                if low < high and width:
                    boxes.append(Region((begin + low * width, begin + high * width), taps))
        begin += len(active) * width
    moved, source = prune_and_grow(
        KernelCSR.from_mask(active.take(units)), means.take(units[active.take(units)]), boxes,
        fraction, dense_grad=None if dense_grad is None else dense_grad.take(units), **how,
    )  # fmt: skip
    if (source >= 0).all():
        return pattern, torch.arange(pattern.nnz, device="cpu")
    kinds = torch.zeros(active.shape, dtype=torch.int8, device="cpu")  # 1 where active, 2 where new
    kinds.put_(units.flatten()[moved.positions()], (1 + (source < 0)).to(torch.int8))
    kinds = spread(kinds, shape, block)
    old = (mask.flatten().cumsum(0) - 1).view(shape)
    return KernelCSR.from_mask(kinds > 0, block), old.where(kinds == 1, -1)[kinds > 0]


def _magnitude(tensor: Tensor) -> Array:
    """The absolute values, float32 or float64; NaN is infinite."""
    found = tensor.detach().abs().cpu()
    found = found if found.dtype == torch.float64 else found.float()
    array: Array = found.nan_to_num(nan=math.inf, posinf=math.inf).numpy()
    return array


def _least(keys: Array, count: int) -> Array:
    """Mark the ``count >= 1`` smallest keys; the first ones among equals."""
    limit = np.partition(keys, count - 1)[count - 1]
    chosen: Array = keys < limit
    ties = np.flatnonzero(keys == limit)
    chosen[ties[: count - np.count_nonzero(chosen)]] = True
    return chosen


def _nth_free(n: Array, taken: Array) -> Array:
    """Find the n-th (from 0) positions that are not ``taken``; both ascend.

    The i-th taken position has ``taken[i] - i`` free ones before it, so none needs listing.
    """
    free_before = taken - np.arange(len(taken), dtype=np.int32)
    found: Array = n + np.searchsorted(free_before, n, side="right").astype(np.int32)
    return found


def _subset(total: int, count: int, generator: torch.Generator | None) -> Array:
    """Draw ``count <= total / 2`` distinct members of ``range(total)``, all subsets equally likely.

    In O(count) memory: duplicates are drawn again among the rest. int32, ascending.
    """
    draws = torch.randint(total, (count,), generator=generator, device="cpu")
    drawn = np.sort(draws.numpy().astype(np.int32))
    last_of_equals = np.append(drawn[1:] != drawn[:-1], True)
    drawn = drawn.take(np.flatnonzero(last_of_equals))
    if len(drawn) == count:
        return drawn
    rest = _subset(total - len(drawn), count - len(drawn), generator)
    return np.sort(np.concatenate([drawn, _nth_free(rest, drawn)]), kind="stable")


def cosine_decay(start: float, end: float, step: int, steps: int) -> float:
    """Fall from ``start`` at step 0 along half a cosine to ``end`` at ``steps``, and stay there.

    Raises:
        ZeroDivisionError: ``steps`` is 0.

    Example:
        >>> cosine_decay(0.5, 0.0, 50, 100)
        0.25

    Source: Loshchilov and Hutter 2017 (SGDR), of learning rates; Evci et al. 2020 (RigL), of the
    share moved.
    """
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * min(step, steps) / steps))


def check_fractions(start: float, floor: float) -> None:
    """Refuse shares of active weights out of order."""
    if not 0 <= floor <= start <= 1:
        raise ValueError(
            "expected 0 <= prune_floor <= prune_fraction <= 1, but got "
            f"prune_floor={floor} and prune_fraction={start}"
        )


def check_growth(grow: str) -> None:
    """Refuse an unknown way to grow."""
    if grow not in GROWTHS:
        raise ValueError(f"grow must be one of {', '.join(map(repr, GROWTHS))}, but got {grow!r}")


def check_regions(regions: Sequence[Region], pattern: KernelCSR) -> None:
    """Refuse regions that overlap, cut a block or do not lie inside the pattern's weight."""
    if not regions:
        return
    shape, size = pattern.shape, pattern.block[0]
    first, end = np.array(regions).transpose(2, 0, 1)
    wrong = (first < 0) | (first > end) | (end > (shape[0], shape[2]))
    if wrong.any():
        region = regions[int(np.flatnonzero(wrong.any(1))[0])]
        raise ValueError(f"{region} does not lie inside a weight of shape {list(shape)}")
    for region in regions:
        if any(edge % size and edge != shape[0] for edge in region[0]):
            raise ValueError(
                f"{region} cuts a block of {size} output channels, whose taps move together; "
                f"let regions begin and end at multiples of {size}"
            )
    overlap = ((first[:, None] < end) & (first < end[:, None])).all(-1)
    overlap &= (first < end).all(-1) & ~np.eye(len(regions), dtype=np.bool_)
    if overlap.any():
        i, j = np.argwhere(overlap)[0]
        raise ValueError(f"regions must be disjoint, but {regions[i]} and {regions[j]} overlap")
