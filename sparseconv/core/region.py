"""Define ``Region``, a box in which dynamic sparse training keeps the number of active weights."""

from __future__ import annotations

from typing import NamedTuple


class Region(NamedTuple):
    """Describe a box of a weight tensor in which the number of active weights stays fixed.

    ``out_channels`` and ``taps`` are half-open ranges; the box spans all input channels. A kernel
    group of a Dynamic Sparse Network is one region. ``DSTScheduler`` and ``prune_and_grow`` check
    regions; the constructor does not.

    Example:
        >>> Region(out_channels=(0, 47), taps=(0, 13))
        Region(out_channels=(0, 47), taps=(0, 13))
    """

    out_channels: tuple[int, int]
    taps: tuple[int, int]


Region.__module__ = "sparseconv"  # the name in pickles; in the class mypy would see a field

__test__ = {"Region": Region}  # for doctest, as its __module__ is sparseconv
