"""Prune the smallest weights and grow others: one update of a pattern, as index arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sparseconv.core.checks import integer, number
from sparseconv.core.pattern import KernelCSR, Region
from sparseconv.ops.backends import extension

GROWTHS = ("random", "gradient", "static")


def prune_and_grow(
    pattern: KernelCSR,
    values: Tensor,
    regions: Sequence[Region],
    fraction: float,
    *,
    grow: str = "random",
    generator: torch.Generator | None = None,
    dense_grad: Tensor | None = None,
) -> tuple[KernelCSR, Tensor]:
    """Move a fraction of each region's active weights to other positions of that region.

    Prunes the ``ceil(fraction * nnz)`` weights of least magnitude (the first in CSR order among
    equals; NaN counts as largest) and grows as many among the positions that do not hold a
    survivor, so that a position just pruned may come back, as a fresh weight. Never more than
    there are inactive positions: a full region is unchanged. Weights outside all regions stay.

    Args:
        pattern: the active weights, shape ``(C_out, C_in // groups, K)``.
        values: ``(nnz,)`` in CSR order, on any device; only magnitudes are read.
        regions: disjoint boxes; the number of active weights in each is kept exactly.
        fraction: share of each region's active weights to move, in [0, 1].
        grow: ``"random"``: uniformly; ``"gradient"``: where ``dense_grad`` is largest in magnitude
            (the first position among equals); ``"static"``: change nothing.
        generator: a CPU generator for random growth; default: torch's global one.
        dense_grad: ``(C_out, C_in // groups, K)``, read for ``grow="gradient"`` only.

    Returns:
        The new pattern and ``source_index``, int64 ``(nnz,)`` on the CPU: for each new weight the
        old CSR index it had, or -1 if it was grown. If nothing moves, ``pattern`` itself.

    Raises:
        ValueError: arguments that do not fit each other, overlapping regions.

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
    check_regions(regions, pattern.shape)
    if values.shape != (pattern.nnz,):
        raise ValueError(f"values must have shape ({pattern.nnz},), but got {list(values.shape)}")
    if not 0 <= number("fraction", fraction) <= 1:
        raise ValueError(f"fraction must lie in [0, 1], but got {fraction}")
    if grow == "gradient" and (dense_grad is None or dense_grad.shape != pattern.shape):
        came = "none" if dense_grad is None else f"one of shape {list(dense_grad.shape)}"
        raise ValueError(
            f"grow='gradient' needs a dense_grad of shape {list(pattern.shape)}, but got {came}"
        )
    if grow == "static":
        return pattern, torch.arange(pattern.nnz, device="cpu")
    move = _reference if extension is None else extension.prune_and_grow
    moved = move(
        pattern.crow_indices,
        pattern.col_indices,
        pattern.shape,
        _exact(values),
        [(*channels, *taps) for channels, taps in regions],
        fraction,
        _exact(dense_grad) if dense_grad is not None and grow == "gradient" else None,
        generator,
    )
    if moved is None:
        return pattern, torch.arange(pattern.nnz, device="cpu")
    crow, col, source = moved
    return KernelCSR(crow, col, pattern.shape), source


def mark_active(bits: Tensor, pattern: KernelCSR) -> None:
    """Set the bits, in uint8 ``(ceil(numel / 8),)``, of the flat positions that are active."""
    if extension is None:
        bits |= torch.from_numpy(np.packbits(pattern.to_mask().numpy(), bitorder="little"))
    else:
        extension.mark_active(bits, pattern.crow_indices, pattern.col_indices, pattern.shape)


def _exact(tensor: Tensor) -> Tensor:
    """Weights of any floating type in float64, which holds them all, for their ranks."""
    return tensor.detach().to("cpu", torch.float64).contiguous()


Array = npt.NDArray[Any]


def _reference(
    crow_indices: Tensor,
    col_indices: Tensor,
    shape: tuple[int, int, int],
    values: Tensor,
    regions: Sequence[tuple[int, int, int, int]],
    fraction: float,
    dense_grad: Tensor | None,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor, Tensor] | None:
    """What csrc/dst/update.cpp does, on dense arrays: for tests, and where it is not built."""
    positions = KernelCSR(crow_indices, col_indices, shape).positions().numpy()
    source = np.full(math.prod(shape), -1)  # of each weight: the CSR index that it had
    source[positions] = np.arange(len(positions))
    grown = np.zeros(shape, np.bool_)
    for first, end, left, right in regions:
        region = slice(first, end), slice(None), slice(left, right)
        inside = source.reshape(shape)[region]
        active = inside[inside >= 0]
        count = min(math.ceil(fraction * len(active)), inside.size - len(active))
        if count == 0:
            continue
        pruned = active[_least(_magnitude(values)[active], count)]
        source[positions[pruned]] = -1
        free = np.flatnonzero(inside < 0)
        if dense_grad is None:
            new = free[_subset(len(free), count, generator)]
        else:
            new = free[_least(-_magnitude(dense_grad[region]).ravel()[free], count)]
        grown[region].flat[new] = True
    if not grown.any():
        return None
    mask = (source >= 0).reshape(shape) | grown
    new_pattern = KernelCSR.from_mask(torch.from_numpy(mask))
    moved = torch.from_numpy(source[mask.ravel()])
    return new_pattern.crow_indices, new_pattern.col_indices, moved


def _magnitude(tensor: Tensor) -> Array:
    """The absolute values; NaN is infinite."""
    array: Array = tensor.abs().nan_to_num(nan=math.inf, posinf=math.inf).numpy()
    return array


def _least(keys: Array, count: int) -> Array:
    """Find the ``count`` smallest keys, the first ones among equals; ascending indices."""
    return np.sort(np.argsort(keys, kind="stable")[:count])


def _subset(total: int, count: int, generator: torch.Generator | None) -> Array:
    """Draw ``count <= total / 2`` distinct members of ``range(total)``, all subsets equally likely.

    Ascending; duplicates are drawn again among the rest.
    """
    drawn = np.unique(torch.randint(total, (count,), generator=generator, device="cpu").numpy())
    if len(drawn) == count:
        return drawn
    rest = np.setdiff1d(np.arange(total), drawn, assume_unique=True)
    return np.union1d(drawn, rest[_subset(len(rest), count - len(drawn), generator)])


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


def check_regions(regions: Sequence[Region], shape: tuple[int, int, int]) -> None:
    """Refuse regions that overlap or do not lie inside a weight of this shape."""
    expectation = "regions must be a sequence of Region((first, end), (first, end)) of ints"
    try:
        boxes = [
            [[integer(expectation, n) for n in (first, end)] for first, end in (channels, taps)]
            for channels, taps in regions
        ]
    except (TypeError, ValueError):
        raise TypeError(f"{expectation}, but got {regions!r}") from None
    if not boxes:
        return
    first, end = np.array(boxes).transpose(2, 0, 1)
    wrong = (first < 0) | (first > end) | (end > (shape[0], shape[2]))
    if wrong.any():
        region = regions[int(np.flatnonzero(wrong.any(1))[0])]
        raise ValueError(f"{region} does not lie inside a weight of shape {list(shape)}")
    overlap = ((first[:, None] < end) & (first < end[:, None])).all(-1)
    overlap &= (first < end).all(-1) & ~np.eye(len(regions), dtype=np.bool_)
    if overlap.any():
        i, j = np.argwhere(overlap)[0]
        raise ValueError(f"regions must be disjoint, but {regions[i]} and {regions[j]} overlap")
