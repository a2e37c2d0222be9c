"""Update one pattern: prune the smallest weights and grow others; record which were ever active."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from sparseconv.core.blocks import Region
from sparseconv.core.checks import share
from sparseconv.core.pattern import KernelCSR, positions_of
from sparseconv.dst import tensors
from sparseconv.nn.sparse_layer import SparseLayer
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
    given = [values] if dense_grad is None else [values, dense_grad.to(values.device)]
    dtype = torch.float64 if torch.float64 in [x.dtype for x in given] else torch.float32
    magnitudes = [
        x.detach().to(dtype).abs().nan_to_num_(nan=math.inf, posinf=math.inf) for x in given
    ]
    shape, block = pattern.shape, pattern.block
    if stays_on_gpu(values):
        if dense_grad is not None:
            fraction = magnitudes[1].any().double() * fraction
        crow, col, source = tensors.update(
            *pattern.on(values.device), shape, block, regions, fraction, seed, *magnitudes
        )
        return KernelCSR.of_arrays(crow, col, shape, block, checked=False), source
    crow, col, active = pattern.crow_indices, pattern.col_indices, None
    magnitudes = [magnitude.cpu() for magnitude in magnitudes]
    if extension is None or block != (1, 1):
        crow, col, source = tensors.update(
            crow, col, shape, block, regions, fraction, seed, *magnitudes
        )
    else:
        boxes = [(*rows, *taps) for rows, taps in regions]
        crow, col, source, active = extension.prune_and_grow(
            crow, col, shape, boxes, fraction, *magnitudes, seed=seed
        )
    if not len(source) or int(source.min()) >= 0:
        return pattern, source
    new = KernelCSR.of_arrays(crow, col, shape, block)
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


def active_bits(pattern: KernelCSR) -> Tensor:
    """Return uint8 ``((numel + 7) // 8,)``: one bit per weight, set if the weight is active."""
    crow, col = pattern.indices_where_stored()
    at = positions_of(crow, col, pattern.shape)
    bits = at.new_zeros((pattern.numel + 7) // 8, dtype=torch.uint8)
    return bits.index_add_(0, at >> 3, (1 << (at & 7)).to(torch.uint8))


class EverActive:
    """Record which weights of some layers have ever been active.

    Attributes:
        bits: uint8 ``((numel + 7) // 8,)`` by layer name, on the device that updates the layer.

    Source: Liu et al. 2021 (ITOP).
    """

    def __init__(self, layers: Mapping[str, SparseLayer]) -> None:
        self._layers = layers
        self.bits = {
            name: torch.zeros((layer.pattern.numel + 7) // 8, dtype=torch.uint8, device="cpu")
            for name, layer in layers.items()
        }
        self._recorded: dict[str, KernelCSR] = {}  # the latest patterns in the bits
        self.record()

    def record(self) -> None:
        """Mark the weights that are active now, because other code may have set a pattern."""
        for name, layer in self._layers.items():
            self.add(name, layer.pattern)

    def add(self, name: str, pattern: KernelCSR) -> None:
        """Mark the active weights of a layer's new pattern."""
        if self._recorded.get(name) is pattern:
            return
        self._recorded[name] = pattern
        bits = pattern.cached(active_bits)
        self.bits[name] = self.bits[name].to(bits.device).bitwise_or_(bits)

    def rate(self) -> float:
        """Return the share of all weights that have ever been active."""
        self.record()
        ever = sum(int((bits >> bit & 1).sum()) for bits in self.bits.values() for bit in range(8))
        return ever / max(1, sum(layer.pattern.numel for layer in self._layers.values()))

    def load(self, bits: Mapping[str, Tensor]) -> None:
        """Continue from these bits."""
        self.bits, self._recorded = dict(bits), {}
