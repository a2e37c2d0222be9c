"""Define blocks of channels that share their taps, and regions that keep their number of weights.

A unit is one tap of a block.
"""

from __future__ import annotations

from numbers import Integral
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sparseconv.core.checks import count, share

Block = tuple[int, int]
Shape = tuple[int, int, int]


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


def as_block(block: Any) -> Block:
    """Return a block as ``(out, in)``; one int sets both, and 1 means single weights."""
    pair = (block, block) if isinstance(block, Integral) else block
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise TypeError(f"block must be an int or a pair (out, in), but got {block!r}")
    out, channels = (count("block", channels) for channels in pair)
    return out, channels


def checked_block(block: Any, shape: Shape) -> Block:
    """Return a block as ``(out, in)``; reject a block larger than the weight."""
    out, channels = as_block(block)
    if out > shape[0] or channels > shape[1]:
        raise ValueError(
            f"a block of {out} x {channels} channels is larger than a weight of shape {shape}, "
            "(C_out, C_in // groups, K); use single weights, block=1, for such a layer"
        )
    return out, channels


def unit_shape(shape: Shape, block: Block) -> Shape:
    """Return the numbers of output blocks, input blocks and taps."""
    return -(-shape[0] // block[0]), -(-shape[1] // block[1]), shape[2]


def spread(units: Tensor, shape: Shape, block: Block) -> Tensor:
    """Expand units to weights ``(C_out, C_in // groups, K)``, each with its unit's value."""
    for dim in (0, 1):
        units = units.repeat_interleave(block[dim], dim).narrow(dim, 0, shape[dim])
    return units


def unit_means(weight: Tensor, block: Block) -> Tensor:
    """Average ``(C_out, C_in // groups, K)`` over the weights of each unit, in float64."""
    return _unit_sums(weight, block) / _unit_sums(weight.new_ones(*weight.shape[:2], 1), block)


def _unit_sums(weight: Tensor, block: Block) -> Tensor:
    missing = [-size % part for size, part in zip(weight.shape, block, strict=False)]
    whole = weight.detach()
    if any(missing):
        whole = F.pad(whole, (0, 0, 0, missing[1], 0, missing[0]))
    # Sum one axis at a time: summing over both at once takes four times as long.
    of_rows = whole.reshape(-1, block[0], *whole.shape[1:]).sum(1, dtype=torch.float64)
    return of_rows.reshape(len(of_rows), -1, block[1], weight.shape[2]).sum(2)


def check_mask(mask: Tensor, block: Block) -> None:
    """Reject a mask that is not constant in blocks; name the first block whose kernels differ."""
    shape = (mask.shape[0], mask.shape[1], mask.shape[2])
    units = mask[:: block[0], :: block[1]]
    wrong = (spread(units, shape, block) != mask).any(2).nonzero()
    if len(wrong):
        tops = [
            i * size
            for i, size in zip(min((wrong.cpu().numpy() // block).tolist()), block, strict=True)
        ]
        ends = [min(tops[i] + block[i], shape[i]) - 1 for i in (0, 1)]
        raise ValueError(
            f"the kernels of a block of {block[0]} x {block[1]} channels must have the same taps, "
            f"but those from input channels {tops[1]} to {ends[1]} to output channels {tops[0]} to "
            f"{ends[0]} differ; prune with block_mask, or use block=1"
        )


def block_mask(weight: Tensor, density: float, *, block: int | tuple[int, int] = 16) -> Tensor:
    """Select the (block, tap) units of a dense weight that have the largest norms.

    Args:
        weight: ``(C_out, C_in // groups, K)``, floating point, on any device.
        density: share in [0, 1]; ``round(density * units)`` units are kept.
        block: see ``KernelCSR``. The last blocks may be smaller, so norms are averages over
            weights.

    Returns:
        A bool mask of the weight's shape and device, for ``torch.nn.utils.prune.custom_from_mask``
        and ``SparseConv1d.from_dense``.

    Raises:
        TypeError, ValueError: a density out of range; a block larger than the weight.

    Example:
        >>> conv = torch.nn.Conv1d(32, 32, 9)
        >>> mask = block_mask(conv.weight, 0.25)
        >>> mask.float().mean()  # 9 of 4 x 9 units
        tensor(0.2500)

    Source: Gray et al. 2017 (blocks of channels, for all taps); Li et al. 2017 (norms).
    """
    density = share("density", density)
    out, channels, taps = weight.shape
    shape = (out, channels, taps)
    pair = checked_block(block, shape)
    norms = unit_means(weight.double().square(), pair)
    kept = norms.flatten().topk(round(density * norms.numel())).indices
    chosen = torch.zeros_like(norms, dtype=torch.bool).flatten().index_fill_(0, kept, True)
    return spread(chosen.view(norms.shape), shape, pair)


__test__ = {"Region": Region}  # for doctest, as its __module__ is sparseconv
