"""Update one pattern: prune the smallest weights, and grow others."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from sparseconv.core.checks import share
from sparseconv.core.pattern import KernelCSR, Region
from sparseconv.dst import tensors
from sparseconv.dst.itop import active_bits
from sparseconv.ops.backends import extension

Growth = Literal["random", "gradient", "static"]
GROWTHS: tuple[Growth, ...] = get_args(Growth)
PRUNE_FRACTION, PRUNE_FLOOR = 0.5, 0.001  # of DSN: the first and the last share of weights moved


class Change(NamedTuple):
    """Hold what an update will do to one layer, computed before any layer changes."""

    name: str
    pattern: KernelCSR
    rewire: list[Callable[[], None]]  # for the layer, and for each average


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
    """Move a share of each region's active weights to other positions in that region.

    Prune the ``ceil(fraction * nnz)`` weights with the smallest magnitude (of tied weights, the
    first), but no more than there are inactive positions. Grow the same number at positions without
    a survivor. Weights outside all regions are kept; NaN counts as the largest magnitude.

    In a pattern of blocks, whole units (a tap of a block) move; units of smaller last blocks move
    only among themselves. Units are pruned by mean magnitude and grown by the gradient's norm.

    Args:
        pattern: of shape ``(C_out, C_in // groups, K)``.
        values: ``(nnz,)`` in CSR order, on any device.
        regions: disjoint boxes that cut no block. Each keeps exactly its number of active weights
            (with blocks: active units).
        fraction: share of each region's active weights to move, in [0, 1].
        grow: ``"random"``: uniformly; ``"gradient"``: where ``dense_grad`` is largest in magnitude
            (ties: the first position); ``"static"``: change nothing.
        generator: a CPU generator for random growth, by default torch's global one.
        dense_grad: of the pattern's shape, used only with ``grow="gradient"``.

    Returns:
        The new pattern and ``source_index``, int64 ``(nnz,)``, on the device of ``values``: for
        each weight, its old CSR index, or -1 if it was grown. If nothing moves, the pattern is
        ``pattern`` itself, except on a GPU.

    Raises:
        ValueError: inconsistent arguments, overlapping regions, or a region that cuts a block.

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
    regions = check_regions(regions, pattern)
    if values.shape != (pattern.nnz,):
        raise ValueError(f"values must have shape ({pattern.nnz},), but got {list(values.shape)}")
    fraction = share("fraction", fraction)
    if grow == "gradient" and (dense_grad is None or dense_grad.shape != pattern.shape):
        came = "none" if dense_grad is None else f"one of shape {list(dense_grad.shape)}"
        raise ValueError(
            f"grow='gradient' needs a dense_grad of shape {list(pattern.shape)}, but got {came}"
        )
    return moved(pattern, values, regions, fraction, grow, generator, dense_grad)


@torch.inference_mode(False)  # a pattern outlives the mode
def moved(
    pattern: KernelCSR,
    values: Tensor,
    regions: Sequence[Region],
    fraction: float | Tensor,
    grow: str,
    generator: torch.Generator | None,
    dense_grad: Tensor | None,
) -> tuple[KernelCSR, Tensor]:
    """Do what ``prune_and_grow`` does, with checked arguments; ``fraction`` may be a tensor."""
    if grow == "static":
        return pattern, torch.arange(pattern.nnz, device="cpu")
    seed = 0
    if grow == "random":
        dense_grad, seed = None, int(torch.randint(2**62, (), generator=generator, device="cpu"))
    if stays_on_gpu(values):
        if dense_grad is not None:
            dense_grad = dense_grad.to(values.device)
            fraction = dense_grad.any().double() * fraction
        crow, col, source = tensors.update(
            *pattern.on(values.device), pattern.shape, pattern.block, regions, fraction, values,
            dense_grad, seed,
        )  # fmt: skip
        new = KernelCSR.of_arrays(crow, col, pattern.shape, pattern.block, checked=False)
        return new, source
    crow, col = pattern.crow_indices, pattern.col_indices
    if extension is None or pattern.block != (1, 1):
        values, dense_grad = values.cpu(), None if dense_grad is None else dense_grad.cpu()
        crow, col, source = tensors.update(
            crow, col, pattern.shape, pattern.block, regions, fraction, values, dense_grad, seed
        )
        active = None
    else:
        given = [values] if dense_grad is None else [values, dense_grad]
        if any(tensor.dtype == torch.float64 for tensor in given):
            given = [tensor.double() for tensor in given]
        magnitudes, *scores = [tensors.magnitudes(tensor).cpu() for tensor in given]
        boxes = [(*rows, *taps) for rows, taps in regions]
        crow, col, source, active = extension.prune_and_grow(
            crow, col, pattern.shape, boxes, fraction, magnitudes, *scores, seed=seed
        )
    if not len(source) or int(source.min()) >= 0:
        return pattern, source
    new = KernelCSR.of_arrays(crow, col, pattern.shape, pattern.block)
    if active is not None:
        new.keep(active_bits, active)
    return new, source


def stays_on_gpu(tensor: Tensor) -> bool:
    """Return whether updates run on this tensor's GPU, so that the CPU does not wait for them."""
    return tensor.is_cuda


def cosine_decay(start: float, end: float, step: int, steps: int) -> float:
    """Return a half cosine's value at ``step``: ``start`` at 0, ``end`` at ``steps`` and later.

    Example:
        >>> cosine_decay(0.5, 0.0, 50, 100)
        0.25

    Source: Loshchilov and Hutter 2017 (SGDR, learning rates); Evci et al. 2020 (RigL, shares
    moved).
    """
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * min(step, steps) / steps))


def check_fractions(start: float, floor: float) -> None:
    """Reject shares of active weights that are out of range or out of order."""
    if share("prune_floor", floor) > share("prune_fraction", start):
        raise ValueError(
            "expected prune_floor <= prune_fraction, but got "
            f"prune_floor={floor} and prune_fraction={start}"
        )


def check_growth(grow: str) -> None:
    if grow not in GROWTHS:
        names = ", ".join(map(repr, GROWTHS))
        raise ValueError(
            f"grow must be one of {names}, but got {grow!r}; RigL is 'gradient', SET is 'random'"
        )


def as_regions(regions: Sequence[Region]) -> tuple[Region, ...]:
    """Return an immutable copy of the regions."""
    pairs: Any = regions  # of sequences
    return tuple(Region(tuple(rows), tuple(taps)) for rows, taps in pairs)


def check_regions(regions: Sequence[Region], pattern: KernelCSR) -> tuple[Region, ...]:
    """Reject regions that overlap, cut a block or do not lie inside the pattern's weight."""
    regions = as_regions(regions)
    if not regions:
        return regions
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
    some = (first < end).all(-1)
    overlap &= some & some[:, None] & ~np.eye(len(regions), dtype=np.bool_)
    if overlap.any():
        i, j = np.argwhere(overlap)[0]
        raise ValueError(f"regions must be disjoint, but {regions[i]} and {regions[j]} overlap")
    return regions
